"""The runtimes outside PyTorch, each with the float32 network or with its own int8 by its own defaults."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quantlib.quantization.integer_engine import onnxruntime_session, session_options
from quantlib.quantization.integer_onnx import IMAGES, float_to_onnx
from quantlib.quantization.integer_openvino import openvino_model
from quantlib.subject.data import Images, batches


class OnnxRuntime:
    """An ONNX graph in ONNX Runtime: a batch in, logits out as a numpy array.

    `level`: how far its optimizer may go, "ALL" (its default), "LAYOUT", "EXTENDED", "BASIC"; None for none
    at all. Introduced in notebook 18.
    """

    def __init__(self, graph: bytes, level: str | None = "ALL") -> None:
        from onnxruntime import GraphOptimizationLevel as Level

        options = session_options()
        options.graph_optimization_level = getattr(
            Level, f"ORT_ENABLE_{level}" if level else "ORT_DISABLE_ALL"
        )
        self.session = onnxruntime_session(graph, options)

    def __call__(self, x: Tensor) -> Any:
        """Logits of a batch."""
        return self.session.run(None, {IMAGES: x.contiguous().numpy()})[0]


def onnxruntime_fp32(model: nn.Module, x: Tensor) -> OnnxRuntime:
    """The float32 network, batch norm folded, in ONNX Runtime; x: images, for their size."""
    return OnnxRuntime(float_to_onnx(model, x.shape[1:]).SerializeToString())


@contextmanager
def _quiet_log() -> Iterator[None]:
    """The quantizer warns through the root logger; it gets its level back."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


class OnnxRuntimeInt8(OnnxRuntime):
    """ONNX Runtime's own static quantization of the float network: QDQ, min-max, weights per channel.

    Calibrated on one batch `x`; called with a batch, it returns logits as a numpy array. The graph and the
    grids are its own. Introduced in notebook 08.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        # In parts: the calibrator keeps every tensor of a batch. Its ranges are over all of them.
        shown = iter([{IMAGES: part.contiguous().numpy()} for part in x.split(32)])
        reader = type("Reader", (CalibrationDataReader,), {"get_next": lambda self: next(shown, None)})()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _quiet_log():
            warnings.simplefilter("ignore")
            exact, rounded = (str(Path(folder) / name) for name in ("float.onnx", "int8.onnx"))
            onnx.save(float_to_onnx(model, x.shape[1:]), exact)
            quantize_static(
                exact, rounded, reader, quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
            super().__init__(Path(rounded).read_bytes())


class OpenVino:
    """A model compiled by OpenVINO: a batch in, logits out as a numpy array. Introduced in notebook 18."""

    def __init__(self, model: Any, precision: str = "f32") -> None:
        self.compiled = openvino_model(model, precision)
        self.request = self.compiled.create_infer_request()

    def __call__(self, x: Tensor) -> Any:
        """Logits of a batch."""
        return self.request.infer([x.contiguous().numpy()])[0].copy()


def openvino_float(model: nn.Module, x: Tensor, precision: str = "f32") -> OpenVino:
    """The float32 network in OpenVINO, computed in "f32" or "bf16"; x: images, for their size."""
    return OpenVino(float_to_onnx(model, x.shape[1:]).SerializeToString(), precision)


def openvino_nncf(model: nn.Module, images: Images) -> OpenVino:
    """OpenVINO's own int8: NNCF's post-training quantization, by its defaults, on these images."""
    import nncf
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)
    shown = [x.contiguous().numpy() for x, _ in batches(images, batch_size=1)]
    graph = float_to_onnx(model, shown[0].shape[1:]).SerializeToString()
    with warnings.catch_warnings(), redirect_stdout(StringIO()):  # it draws progress bars
        warnings.simplefilter("ignore")
        exact = openvino.Core().read_model(graph)
        return OpenVino(nncf.quantize(exact, nncf.Dataset(shown), subset_size=len(shown)))

"""The toolkits that notebooks measure beside ours: torch.ao and ONNX Runtime, each by its own defaults."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlib.quantization.integer_engine import session_options
from quantlib.subject.data import Images, batches


def if_here(what: str, make: Callable[[], Any]) -> Any:
    """What `make` returns, or None and one printed sentence where the toolkit or its kernels are missing."""
    try:
        return make()
    except (ImportError, AttributeError, RuntimeError) as error:
        print(f"{what} is not here: {str(error).splitlines()[0]}")
        return None


@contextmanager
def _quietly(backend: str) -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = backend
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = before


def torch_ao_calibrated(
    model: nn.Module, images: Images, backend: str = "x86", dtype: torch.dtype = torch.float32
) -> Any:
    """torch.ao's network with its default observers of `backend`, after it has seen the images.

    dtype bfloat16 runs it under autocast. Introduced in notebook 07.
    """
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with _quietly(backend), torch.no_grad(), autocast:
        example = next(batches(images.take(1)))[0]
        watched = prepare_fx(model, get_default_qconfig_mapping(backend), (example,))
        for x, _ in batches(images):
            watched(x)
    return watched


def torch_ao(model: nn.Module, images: Images, backend: str = "x86") -> nn.Module:
    """torch.ao's int8 network on the kernels of `backend` ("x86", "fbgemm", "onednn", "qnnpack")."""
    from torch.ao.quantization.quantize_fx import convert_fx

    watched = torch_ao_calibrated(model, images, backend)
    with _quietly(backend):
        converted: nn.Module = convert_fx(watched)
    return converted


class OnnxRuntimeInt8:
    """ONNX Runtime's own static quantization of the float network: QDQ, min-max, weights per channel.

    Calibrated on one batch `x`; called with a batch, it returns logits as a numpy array. Only its time is of
    interest: the graph and the grids are its own. Introduced in notebook 08.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        import onnxruntime
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        logging.getLogger().setLevel(logging.ERROR)
        shown = iter([{"images": x.contiguous().numpy()}])
        reader = type("Reader", (CalibrationDataReader,), {"get_next": lambda self: next(shown, None)})()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exact, rounded = (str(Path(folder) / name) for name in ("float.onnx", "int8.onnx"))
            torch.onnx.export(
                model, (x[:2].contiguous(),), exact, input_names=["images"],
                dynamic_axes={"images": {0: "n"}}, dynamo=False,
            )  # fmt: skip
            quantize_static(
                exact, rounded, reader, quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
            self.session = onnxruntime.InferenceSession(
                rounded, session_options(), providers=["CPUExecutionProvider"]
            )

    def __call__(self, x: Tensor) -> Any:
        """Logits of a batch."""
        return self.session.run(None, {"images": x.contiguous().numpy()})[0]

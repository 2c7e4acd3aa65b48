"""The integer network on OpenVINO: its QDQ form, which that runtime turns into int8 kernels."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from quantlib.errors import ConfigError
from quantlib.optional import optional
from quantlib.quantization.integer_engine import SUB_BATCH, RuntimeEngine
from quantlib.quantization.integer_graph import Integer
from quantlib.quantization.integer_layers import IntegerLayer
from quantlib.quantization.requantize import along
from quantlib.quantization.saturation import layers_at_risk
from quantlib.subject.benchmark import has_vnni

_TURN = Lock()
"""A request holds one pair of buffers: two calls at once would read each other's logits."""


class OpenVinoEngine(RuntimeEngine):
    """An Integer, run by OpenVINO: near `reference`, not equal to it; see RuntimeEngine.

    Single values on a tie may be rounded the other way, and a residual addition is fused into the convolution
    before it. The result is as good, but not the same integer everywhere; notebook 18 counts the differences.
    Raises ConfigError where openvino is missing, and on a CPU without VNNI for weights whose sums might
    saturate there. Introduced in notebook 18.
    """

    form = "qdq"

    def __init__(self, reference: Integer, sub_batch: int = SUB_BATCH) -> None:
        _openvino()
        super().__init__(reference, sub_batch)
        check_saturation(reference)

    def integers(self, x: Tensor) -> dict[str, Tensor]:
        """The integers that every operator puts out; int32 sums are read off the logits that they mean."""
        *_, end = self.reference.steps
        last: Any = end.module
        bits = fraction_bits(self.reference)

        def whole(name: str, value: Tensor) -> Tensor:
            unit = last.scales(value) * 2 ** (bits[end.inputs[0]] - bits[name])
            return value if value.dtype == torch.uint8 else _whole(value / along(unit, value))

        return {name: whole(name, value) for name, value in super().integers(x).items()}

    def start(self, model: bytes) -> Any:
        """A compiled model's request, which holds the memory between two calls."""
        return openvino_model(model).create_infer_request()

    def call(self, session: Any, x: Any) -> Sequence[Any]:
        """Every result of the request, copied: the next call would overwrite it."""
        with _TURN:
            results = session.infer([x])
            return [results[place].copy() for place in range(len(results))]

    def kernels(self, shape: Sequence[int]) -> list[tuple[str, str, str]]:
        """What OpenVINO runs for images of this shape: (operator, precision, kernel), in order."""
        return openvino_kernels(self._session(tuple(shape), []).get_compiled_model())


def fraction_bits(model: Integer) -> dict[str, int]:
    """How many bits behind the point the integers of each step have; see IntegerAvgPool2d."""
    found = {"": 0}
    for name, module, inputs in model.steps:
        found[name] = getattr(module, "fraction_bits", 0) + max(found[each] for each in inputs)
    return found


def check_saturation(model: Integer) -> None:
    """Raise ConfigError where this CPU adds pairs of products in 16 bits and a layer may not fit."""
    if has_vnni():
        return
    layers = [step.module for step in model.steps if isinstance(step.module, IntegerLayer)]
    risks = layers_at_risk({layer.name: (layer.weight, layer.input_grid.quant_max) for layer in layers})
    if risks:
        raise ConfigError(
            f"This CPU has no VNNI, and int8 sums of layer {risks[0].name!r} might saturate in OpenVINO; "
            "give activations 7 bits, or use engine='onnxruntime'."
        )


def openvino_model(model: Any, precision: str = "f32", **more: Any) -> Any:
    """Compile a serialized ONNX graph, a path or a model of OpenVINO's, with torch's number of threads.

    precision: of what is not quantized; OpenVINO's own choice is "bf16" where the CPU has it. `more`: its own
    settings, by name. Introduced in notebook 18.
    """
    core = _openvino().Core()
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        **more,
    }
    return core.compile_model(core.read_model(model) if isinstance(model, bytes) else model, "CPU", settings)


def openvino_kernels(compiled: Any) -> list[tuple[str, str, str]]:
    """What a compiled model runs: (operator, precision, kernel) of every node but constants, in order."""
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        about = node.get_rt_info()
        names = ("layerType", "runtimePrecision", "primitiveType")
        kind, precision, kernel = (about[name].astype(str) for name in names)
        if kind not in ("Const", "Input", "Output"):
            found.append((kind, precision, kernel))
    return found


def _whole(value: Tensor) -> Tensor:
    return torch.round(value).to(torch.int32)


def _openvino() -> Any:
    return optional(
        "openvino", "The engine 'openvino'", "pip install -e '.[rivals]', or use engine='onnxruntime'"
    )

"""The integer network as an ONNX graph: a file that any ONNX Runtime computes to the very same integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from quantlib.errors import ConfigError
from quantlib.quantization.integer_graph import LAST, Integer, Step
from quantlib.quantization.integer_layers import IntegerLayer
from quantlib.quantization.onnx_operators import RUNTIME, WRITERS
from quantlib.quantization.onnx_writer import Writer, optional

OPSET, IR_VERSION = 17, 8
"""Versions of ONNX that every ONNX Runtime since 1.14 reads."""

IMAGES = "images"
"""The name of the graph's input."""


def check_exportable(model: Integer) -> None:
    """Raise ConfigError for a network that ONNX Runtime would compute to other integers."""
    if model.rounding != "float":
        raise ConfigError(
            f"ONNX Runtime rounds as rounding='float', not {model.rounding!r}; use engine='reference'."
        )
    for name, module, _ in model.steps:
        if isinstance(module, IntegerLayer) and not module.fits:
            raise ConfigError(
                f"Layer {name!r} may need accumulators of more than 32 bits, and ONNX Runtime would not say "
                "so; use engine='reference', or fewer bits there."
            )


def to_onnx(model: Integer, shape: Sequence[int], keep: Sequence[str] = ()) -> Any:
    """The integer network as an onnx.ModelProto: float32 "images" (n, *shape) in, float32 logits out.

    shape: (channels, height, width) of one image; the number of images stays open. `keep`: names of steps
    whose integers become results too; every tensor is named after the step that makes it.
    Raises ConfigError without the package onnx, for another rounding than "float", and for a layer whose
    accumulators may not fit into 32 bits. Introduced in notebook 08.
    """
    check_exportable(model)
    onnx, helper = optional("onnx"), optional("onnx.helper")
    samples = model.integers(torch.zeros(1, *shape))
    graph = Writer(samples)
    for name, module, inputs in model.steps:
        WRITERS[type(module)](graph, Step(name, module, [each or IMAGES for each in inputs]))
    logits = model.steps[-1].inputs[0]
    kind = {torch.uint8: onnx.TensorProto.UINT8, torch.int32: onnx.TensorProto.INT32}
    results = [(LAST, onnx.TensorProto.FLOAT, samples[logits].shape)]
    results += [(name, kind[samples[name].dtype], samples[name].shape) for name in keep]
    body = helper.make_graph(
        graph.nodes,
        "integer",
        [helper.make_tensor_value_info(IMAGES, onnx.TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info(name, dtype, ["n", *size[1:]]) for name, dtype, size in results],
        graph.constants,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(RUNTIME, 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="quantlib")

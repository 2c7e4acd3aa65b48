"""The network as an ONNX graph: in integers (two forms), or in float32 for whoever quantizes it himself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from quantlib.errors import ConfigError, UnsupportedOperatorError
from quantlib.quantization.graph import fuse
from quantlib.quantization.integer_graph import LAST, Integer, Step, record, steps_of
from quantlib.quantization.integer_layers import IntegerLayer
from quantlib.quantization.onnx_float import FLOAT_WRITERS
from quantlib.quantization.onnx_operators import RUNTIME, WRITERS
from quantlib.quantization.onnx_qdq import QDQ_WRITERS, QdqWriter
from quantlib.quantization.onnx_writer import Writer, onnx_package
from quantlib.quantization.qconfig import check_name
from quantlib.quantization.sites import check_ends

OPSET, IR_VERSION = 17, 8
"""Versions of ONNX that every ONNX Runtime since 1.14 reads."""

IMAGES = "images"
"""The name of the graph's input."""

FORMS: dict[str, tuple[type[Writer], dict[type[nn.Module], Callable[..., None]]]] = {
    "qlinear": (Writer, WRITERS),
    "qdq": (QdqWriter, QDQ_WRITERS),
}
"""Both ways to write integers: operators that compute with them, or float operators between quantizations."""


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


def to_onnx(model: Integer, shape: Sequence[int], keep: Sequence[str] = (), form: str = "qlinear") -> Any:
    """The integer network as an onnx.ModelProto: float32 "images" (n, *shape) in, float32 logits out.

    shape: (channels, height, width) of one image; the number of images stays open. `keep`: names of steps
    whose integers become results too (int32 sums in "qdq" as the floats that they mean); every tensor is
    named after the step that makes it. `form`: "qlinear", operators on integers, which ONNX Runtime computes
    to the reference's very integers; or "qdq", float operators between quantizations, which every runtime
    reads and computes to within one step. Raises ConfigError without the package onnx, for another rounding
    than "float", and for a layer whose accumulators may not fit into 32 bits. Introduced in notebook 08;
    "qdq" in notebook 18.
    """
    check_name(form, FORMS, "form")
    check_exportable(model)
    maker, writers = FORMS[form]
    samples = model.integers(torch.zeros(1, *shape))
    graph = _written(maker(samples), model.steps, writers)
    logits = samples[model.steps[-1].inputs[0]]
    kept = {name: _as_written(samples[name], form) for name in keep}
    return _finished(graph, shape, {LAST: logits.float(), **kept}, form)


def _as_written(sample: Tensor, form: str) -> Tensor:
    """A step's integers as a result of the graph: in "qdq" int32 sums are the floats that they mean."""
    return sample if form == "qlinear" or sample.dtype == torch.uint8 else sample.float()


def float_to_onnx(model: nn.Module, shape: Sequence[int]) -> Any:
    """The float32 network, batch norm folded, as an onnx.ModelProto: "images" (n, *shape) in, logits out.

    Any network that `fuse` takes. Raises ConfigError without the package onnx, UnsupportedOperatorError for
    an operator that cannot be written, naming every such node with its place. Introduced in notebook 18.
    """
    fused = fuse(model)
    check_ends(fused.graph)
    with torch.no_grad():
        samples = record(fused, torch.zeros(1, *shape))
    steps = steps_of(fused)
    graph = _written(Writer(samples), steps, FLOAT_WRITERS)
    graph.node("Identity", [steps[-1].name], LAST)
    return _finished(graph, shape, {LAST: samples[steps[-1].name]}, "float32")


def apart(model: Integer, shape: Sequence[int], form: str) -> tuple[Any, list[str]]:
    """`to_onnx`, but each step reads an input of its own, "given_NAME", in the place of what step NAME made.

    So a runtime computes every step from exactly the reference's integers. Returns the graph and the names of
    those inputs; its results are the steps' integers. What follows int32 sums stays connected.
    Raises ConfigError as `to_onnx`. Introduced in notebook 18.
    """
    check_name(form, FORMS, "form")
    check_exportable(model)
    maker, writers = FORMS[form]
    samples = model.integers(torch.zeros(1, *shape))
    names = [name for name, sample in samples.items() if sample.dtype == torch.uint8]
    steps = model.steps[:-1]
    given = {f"given_{each}": samples[each] for step in steps for each in step.inputs if each in names}
    graph = maker(samples)
    for name, module, inputs in steps:
        graph.step = name
        read = [f"given_{each}" if each in names else each or IMAGES for each in inputs]
        writers[type(module)](graph, Step(name, module, read))
        graph.alias(name, f"given_{name}")
    return _finished(graph, shape, {name: samples[name] for name in names}, form, given), list(given)


def _written(graph: Any, steps: Sequence[Step], writers: dict[type[nn.Module], Callable[..., None]]) -> Any:
    """Every step as operators; UnsupportedOperatorError that lists what has none, with its place."""
    missing = [
        f"{step.name!r} ({type(step.module).__name__})" for step in steps if type(step.module) not in writers
    ]
    if missing:
        raise UnsupportedOperatorError(f"ONNX export cannot write {', '.join(missing)}; replace them.")
    for name, module, inputs in steps:
        graph.step = name
        writers[type(module)](graph, Step(name, module, [each or IMAGES for each in inputs]))
    return graph


def _finished(
    graph: Writer, shape: Sequence[int], results: Mapping[str, Tensor], name: str,
    given: Mapping[str, Tensor] = MappingProxyType({}),
) -> Any:  # fmt: skip
    """The model around the operators; results, given: a sample of each output and of each further input."""
    onnx, helper = onnx_package("onnx"), onnx_package("onnx.helper")
    kinds = {torch.uint8: onnx.TensorProto.UINT8, torch.int32: onnx.TensorProto.INT32}

    def info(tensor: str, sample: Tensor) -> Any:
        number = kinds.get(sample.dtype, onnx.TensorProto.FLOAT)
        return helper.make_tensor_value_info(tensor, number, ["n", *sample.shape[1:]])

    inputs = [info(*each) for each in {IMAGES: torch.zeros(1, *shape), **given}.items()]
    outputs = [info(*each) for each in results.items()]
    body = helper.make_graph(graph.nodes, name, inputs, outputs, graph.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(RUNTIME, 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="quantlib")

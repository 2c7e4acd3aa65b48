"""How each integer operator is written in ONNX: in operators that compute the very same integers.

QLinearConv, QGemm and QLinearMatMul take uint8 activations, int8 weights and an int32 bias, and requantize
as the rounding "float" does. ONNX itself has no integer addition, average or concatenation; those are
ONNX Runtime's own, in the domain com.microsoft. All saturate at 0 and 255; any other limit is a Clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantlib.quantization.fused import Flatten
from quantlib.quantization.integer_elementwise import IntegerAdd, IntegerConcat, IntegerReLU
from quantlib.quantization.integer_graph import Step
from quantlib.quantization.integer_layers import (
    Dequantize,
    Grid,
    IntegerConv2d,
    IntegerLayer,
    IntegerLinear,
)
from quantlib.quantization.integer_pooling import IntegerAdaptiveAvgPool2d, IntegerAvgPool2d, IntegerMaxPool2d
from quantlib.quantization.mixed_layers import Quantize
from quantlib.quantization.onnx_float import max_window, mean_matrix, window_of
from quantlib.quantization.onnx_writer import Writer

RUNTIME = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

INT32, DOUBLE = 6, 11
"""ONNX's numbers for these types."""


def _quantize(graph: Writer, step: Step) -> None:
    """rint(x * inverse) + zero_point: QuantizeLinear would divide by the scale, so here it divides by 1."""
    m: Any = step.module
    scaled = graph.node("Mul", [*step.inputs, graph.constant(m.inverse, np.float32)])
    whole = graph.grid(Grid(1.0, m.zero_point, 0, 255))
    graph.clipped("QuantizeLinear", [scaled, *whole], step.name, (m.quant_min, m.quant_max))


def _conv(graph: Writer, step: Step) -> None:
    m: Any = step.module
    window, kernel = window_of(m.geometry), m.weight.shape[2:]
    if m.output_grid is None:
        _accumulators(graph, step, "ConvInteger", m.weight, (-1, *[1] * len(kernel)), **window)
        return
    weight, bias = _weight(graph, m)
    inputs = [*step.inputs, *graph.grid(m.input_grid), *weight, *graph.grid(m.output_grid), bias]
    graph.clipped("QLinearConv", inputs, step.name, (m.low, m.high), **window)


def _linear(graph: Writer, step: Step) -> None:
    m: Any = step.module
    if m.output_grid is None:
        _accumulators(graph, step, "MatMulInteger", m.weight.t(), (-1,))
        return
    weight, bias = _weight(graph, m)
    inputs = [*step.inputs, *graph.grid(m.input_grid), *weight, bias, *graph.grid(m.output_grid)]
    graph.clipped("QGemm", inputs, step.name, (m.low, m.high), domain=RUNTIME, transB=1)


def _weight(graph: Writer, m: IntegerLayer) -> tuple[list[str], str]:
    """Weight, its scales, its zero points; and the bias."""
    zeros = torch.zeros(len(m.weight), dtype=torch.int8)
    return [graph.constant(each) for each in (m.weight, m.weight_scale, zeros)], graph.constant(m.bias)


def _accumulators(
    graph: Writer, step: Step, operator: str, weight: Tensor, shape: tuple[int, ...], **attributes: Any
) -> None:
    """The network's result as int32: sums, bias, ReLU."""
    m: Any = step.module
    zero = graph.constant(m.input_grid.zero_point, np.uint8)
    inputs = [*step.inputs, graph.constant(weight), zero]
    result = graph.node(operator, inputs, **attributes)
    finish = [("Add", m.bias)]
    if m.relu:
        finish.append(("Max", torch.zeros_like(m.bias)))
    if m.top is not None:
        finish.append(("Min", m.top))
    for operator, values in finish:
        result = graph.node(operator, [result, graph.constant(values.reshape(shape))])
    graph.node("Identity", [result], step.name)


def _add(graph: Writer, step: Step) -> None:
    m: Any = step.module
    inputs = _with_grids(graph, step.inputs, m.input_grids) + graph.grid(m.output_grid)
    graph.clipped("QLinearAdd", inputs, step.name, (m.low, m.high), domain=RUNTIME)


def _with_grids(graph: Writer, inputs: Sequence[str], grids: Sequence[Grid]) -> list[str]:
    """Each tensor, followed by its scale and zero point."""
    pairs = zip(inputs, grids, strict=True)
    return [name for tensor, grid in pairs for name in (tensor, *graph.grid(grid))]


def _relu(graph: Writer, step: Step) -> None:
    """A concatenation of one tensor changes its grid; the ReLU is the clip."""
    m: Any = step.module
    inputs = graph.grid(m.output_grid) + _with_grids(graph, step.inputs, [m.input_grid])
    graph.clipped("QLinearConcat", inputs, step.name, (m.low, m.high), domain=RUNTIME, axis=1)


def _concat(graph: Writer, step: Step) -> None:
    m: Any = step.module
    inputs = graph.grid(m.output_grid) + _with_grids(graph, step.inputs, m.input_grids)
    limits = m.output_grid.limits(False, None)
    graph.clipped("QLinearConcat", inputs, step.name, limits, domain=RUNTIME, axis=m.dim)


def _max_pool(graph: Writer, step: Step) -> None:
    m: Any = step.module
    before, after = (graph.samples[name].shape[2:] for name in (step.inputs[0], step.name))
    window = max_window(m, before, after)
    if m.output_grid is not None:
        graph.node("MaxPool", step.inputs, step.name, **window)
        return
    whole = graph.node("Cast", step.inputs, to=DOUBLE)
    graph.node("Cast", [graph.node("MaxPool", [whole], **window)], step.name, to=INT32)


def _average(graph: Writer, step: Step) -> None:
    """Every average is a product with a matrix of zeros and ones, then a requantization with M = 1 / count.

    One that spans the whole map has an operator of its own, with that rule.
    """
    m: Any = step.module
    mean = mean_matrix(m, graph.samples[step.inputs[0]].shape[2:])
    after = list(graph.samples[step.name].shape[1:])
    ones, count = (mean > 0), (1 / mean.amax(0)).round()
    if m.output_grid is None:
        _exact_average(graph, step, ones.double(), count / 2**m.fraction_bits)
        return
    limits = (m.output_grid.quant_min, m.output_grid.quant_max)
    unit = graph.grid(m.output_grid._replace(scale=1.0))
    if mean.shape[1] == 1 and bool(ones.all()) and int(count) == len(mean):
        inputs = [*step.inputs, *unit, *unit]
        graph.clipped("QLinearGlobalAveragePool", inputs, step.name, limits, domain=RUNTIME)
        return
    flat = graph.node("Reshape", [*step.inputs, graph.constant([0, 0, -1], np.int64)])
    scale, zeros = 1 / count.float(), torch.zeros(len(count), dtype=torch.int8)
    matrix = [graph.constant(each) for each in (ones.to(torch.int8), scale, zeros)]
    means = graph.node("QLinearMatMul", [flat, *unit, *matrix, *unit])
    graph.clipped("Reshape", [means, graph.constant([0, *after], np.int64)], step.name, limits)


def _exact_average(graph: Writer, step: Step, ones: Tensor, count: Tensor) -> None:
    """Averages of int32: float64 holds the sums exactly, and divides exactly enough to round."""
    shapes = ([0, 0, -1], [0, *graph.samples[step.name].shape[1:]])
    flat, back = (graph.constant(shape, np.int64) for shape in shapes)
    values = graph.node("Cast", [graph.node("Reshape", [*step.inputs, flat])], to=DOUBLE)
    sums = graph.node("MatMul", [values, graph.constant(ones)])
    means = graph.node("Round", [graph.node("Div", [sums, graph.constant(count)])])
    graph.node("Reshape", [graph.node("Cast", [means], to=INT32), back], step.name)


def _flatten(graph: Writer, step: Step) -> None:
    graph.node("Flatten", step.inputs, step.name, axis=1)


def _dequantize(graph: Writer, step: Step) -> None:
    m: Any = step.module
    result = graph.samples[step.inputs[0]]
    inputs = [*step.inputs, graph.constant(m.scales(result))]
    if result.dtype == torch.uint8:
        inputs.append(graph.constant(m.zero_point, np.uint8))
    graph.node("DequantizeLinear", inputs, step.name, axis=1)


WRITERS: dict[type[nn.Module], Callable[[Writer, Step], None]] = {
    Quantize: _quantize,
    IntegerConv2d: _conv,
    IntegerLinear: _linear,
    IntegerAdd: _add,
    IntegerReLU: _relu,
    IntegerConcat: _concat,
    IntegerMaxPool2d: _max_pool,
    IntegerAvgPool2d: _average,
    IntegerAdaptiveAvgPool2d: _average,
    Flatten: _flatten,
    Dequantize: _dequantize,
}
"""How each module of the integer network becomes operators of ONNX."""

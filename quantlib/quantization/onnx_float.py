"""The float32 network in ONNX, operator by operator: what the QDQ form wraps, and what rivals quantize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantlib.errors import UnsupportedOperatorError
from quantlib.quantization.fused import Concat, Flatten, FusedAdd, FusedConv2d, FusedLinear
from quantlib.quantization.integer_graph import Step
from quantlib.quantization.integer_pooling import IntegerAdaptiveAvgPool2d, IntegerAvgPool2d
from quantlib.quantization.kernels import Geometry
from quantlib.quantization.onnx_writer import Writer

Average = nn.AvgPool2d | nn.AdaptiveAvgPool2d | IntegerAvgPool2d | IntegerAdaptiveAvgPool2d
"""The average poolings, of floats and of integers."""


def convolve(graph: Writer, inputs: Sequence[str], geometry: Geometry, out: str = "") -> str:
    """Conv of [x, weight, bias], all named."""
    return graph.node("Conv", inputs, out, **window_of(geometry))


def window_of(geometry: Geometry) -> dict[str, Any]:
    """Where a convolution looks, in ONNX's words."""
    stride, padding, dilation, groups = geometry
    return {"strides": stride, "pads": [*padding, *padding], "dilations": dilation, "group": groups}


def multiply(graph: Writer, inputs: Sequence[str], out: str = "") -> str:
    """Gemm of [x, weight (out, in), bias], all named."""
    return graph.node("Gemm", inputs, out, transB=1)


def rectify(graph: Writer, value: str, relu: bool, ceiling: float | None, out: str = "") -> str:
    """The ReLU or ReLU6 inside an operator; the value itself without one."""
    if not relu:
        return graph.node("Identity", [value], out) if out else value
    if ceiling is None:
        return graph.node("Relu", [value], out)
    bounds = [graph.constant(limit, np.float32) for limit in (0.0, ceiling)]
    return graph.node("Clip", [value, *bounds], out)


def max_window(m: Any, before: Sequence[int], after: Sequence[int]) -> dict[str, Any]:
    """A max pooling's window, in ONNX's words, for maps of these heights and widths.

    The end of the border follows from the output's size, so that ceil_mode means what torch means.
    Raises UnsupportedOperatorError where that is more than ONNX Runtime takes.
    """
    kernel, stride, padding, dilation = (
        pair(each) for each in (m.kernel_size, m.stride, m.padding, m.dilation)
    )
    ends = [
        max((out - 1) * s + d * (k - 1) + 1 - size - p, 0)
        for out, s, d, k, size, p in zip(after, stride, dilation, kernel, before, padding, strict=True)
    ]
    if any(end >= side for end, side in zip(ends, kernel, strict=True)):
        raise UnsupportedOperatorError(
            "ONNX Runtime pads a max pooling by less than its kernel; use ceil_mode=False or the engine "
            "'reference'."
        )
    return {"kernel_shape": kernel, "strides": stride, "dilations": dilation, "pads": [*padding, *ends]}


def pair(side: int | Sequence[int]) -> list[int]:
    """Height and width."""
    return [side, side] if isinstance(side, int) else list(side)


def average(graph: Writer, value: str, m: Average, sizes: tuple[Any, Any], out: str = "") -> str:
    """Any average pooling of the float tensor `value`; sizes: shapes (n, c, h, w) before and after it.

    One over the whole map and one with plain windows have operators; the rest is a product with a matrix.
    """
    before, after = (list(size[1:]) for size in sizes)
    if after[1:] == [1, 1] and isinstance(m, nn.AdaptiveAvgPool2d | IntegerAdaptiveAvgPool2d):
        return graph.node("GlobalAveragePool", [value], out)
    if isinstance(m, nn.AvgPool2d | IntegerAvgPool2d) and not m.ceil_mode and m.divisor_override is None:
        kernel, stride, padding = (pair(each) for each in (m.kernel_size, m.stride, m.padding))
        border = {"pads": [*padding, *padding], "count_include_pad": int(m.count_include_pad)}
        return graph.node("AveragePool", [value], out, kernel_shape=kernel, strides=stride, **border)
    matrix = graph.constant(mean_matrix(m, before[1:]).float())
    shapes = (graph.constant(shape, np.int64) for shape in ([0, 0, -1], [0, *after]))
    means = graph.node("MatMul", [graph.node("Reshape", [value, next(shapes)]), matrix])
    return graph.node("Reshape", [means, next(shapes)], out)


def mean_matrix(m: Average, size: Sequence[int]) -> Tensor:
    """The pooling as a float64 matrix (pixels in, pixels out): what it makes of each pixel alone."""
    count = size[0] * size[1]
    # A few pixels at a time: all of them at once would be their number squared, twice.
    parts = (F.one_hot(some, count).double().view(-1, 1, *size) for some in torch.arange(count).split(512))
    return torch.cat([_means(m, part).flatten(1) for part in parts])


def _means(m: Average, x: Tensor) -> Tensor:
    if isinstance(m, IntegerAdaptiveAvgPool2d | nn.AdaptiveAvgPool2d):
        return F.adaptive_avg_pool2d(x, m.output_size)  # type: ignore[arg-type]
    window = (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override)
    return F.avg_pool2d(x, *window)  # type: ignore[arg-type]


def _layer(graph: Writer, step: Step) -> None:
    m: Any = step.module
    bias = torch.zeros(len(m.weight)) if m.bias is None else m.bias.detach()
    inputs = [*step.inputs, graph.constant(m.weight.detach().contiguous()), graph.constant(bias)]
    conv = isinstance(m, nn.Conv2d)
    value = convolve(graph, inputs, Geometry.of(m)) if conv else multiply(graph, inputs)
    rectify(graph, value, m.relu, m.ceiling, step.name)


def _add(graph: Writer, step: Step) -> None:
    m: Any = step.module
    rectify(graph, graph.node("Add", step.inputs), m.relu, m.ceiling, step.name)


def _relu(graph: Writer, step: Step) -> None:
    rectify(graph, step.inputs[0], True, 6.0 if isinstance(step.module, nn.ReLU6) else None, step.name)


def _concat(graph: Writer, step: Step) -> None:
    m: Any = step.module
    graph.node("Concat", step.inputs, step.name, axis=m.dim)


def _max_pool(graph: Writer, step: Step) -> None:
    before, after = (graph.samples[name].shape[2:] for name in (step.inputs[0], step.name))
    graph.node("MaxPool", step.inputs, step.name, **max_window(step.module, before, after))


def _average(graph: Writer, step: Step) -> None:
    m: Any = step.module
    sizes = graph.samples[step.inputs[0]].shape, graph.samples[step.name].shape
    average(graph, step.inputs[0], m, sizes, step.name)


def _flatten(graph: Writer, step: Step) -> None:
    graph.node("Flatten", step.inputs, step.name, axis=1)


FLOAT_WRITERS: dict[type[nn.Module], Callable[[Writer, Step], None]] = {
    FusedConv2d: _layer,
    FusedLinear: _layer,
    FusedAdd: _add,
    nn.ReLU: _relu,
    nn.ReLU6: _relu,
    Concat: _concat,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average,
    nn.AdaptiveAvgPool2d: _average,
    Flatten: _flatten,
}
"""How each module of the canonical float network becomes operators of ONNX."""

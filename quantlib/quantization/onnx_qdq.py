"""The integer network in ONNX's QDQ form: float operators, each between DequantizeLinear and QuantizeLinear.

What a tensor means is written down, not how it is computed. A runtime that knows the pattern puts one int8
kernel in its place; one that does not computes in float32. Either may round a tie otherwise than we do, so
that an output may be one step off; nothing else is left open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from quantlib.quantization.fused import Flatten
from quantlib.quantization.integer_elementwise import IntegerAdd, IntegerConcat, IntegerReLU
from quantlib.quantization.integer_graph import Step
from quantlib.quantization.integer_layers import Dequantize, Grid, IntegerConv2d, IntegerLinear
from quantlib.quantization.integer_pooling import IntegerAdaptiveAvgPool2d, IntegerAvgPool2d, IntegerMaxPool2d
from quantlib.quantization.mixed_layers import Quantize
from quantlib.quantization.onnx_float import average, convolve, max_window, multiply, rectify
from quantlib.quantization.onnx_writer import Writer


class QdqWriter(Writer):
    """Knows the grid of every uint8 tensor, and the float tensor that it means."""

    def __init__(self, samples: dict[str, Tensor]) -> None:
        super().__init__(samples)
        self.grids: dict[str, Grid | None] = {}
        self._floats: dict[str, str] = {}

    def alias(self, name: str, other: str) -> None:
        """Let the tensor `other` be of the shape and grid of `name`."""
        super().alias(name, other)
        self.grids[other] = self.grids[name]

    def floats(self, name: str) -> str:
        """The float tensor that the integers of step `name` mean; all readers share it."""
        grid = self.grids[name]
        if grid is None:
            return name
        if name not in self._floats:
            self._floats[name] = self.node("DequantizeLinear", [name, *self.grid(grid)])
        return self._floats[name]

    def quantized(self, value: str, step: Step, grid: Grid | None, limits: tuple[int, int] | None) -> None:
        """End a step: the float tensor `value` becomes its integers, or stays where there is no grid.

        limits: lowest and highest integer, where they are narrower than what a ReLU and uint8 see to.
        """
        self.grids[step.name] = grid
        if grid is None:
            self.node("Identity", [value], step.name)
            return
        self.node("QuantizeLinear", [self.clip(value, grid, limits), *self.grid(grid)], step.name)

    def clip(self, value: str, grid: Grid, limits: tuple[int, int] | None) -> str:
        """The float tensor `value` within what the integers `limits` of a grid mean."""
        if limits is None:
            return value
        bounds = [self.constant((limit - grid.zero_point) * grid.scale, np.float32) for limit in limits]
        return self.node("Clip", [value, *bounds])


def _rectified(graph: QdqWriter, value: str, step: Step, relu: bool = True) -> None:
    """The ReLU, where there is one, and the quantization that ends a step with limits of its own."""
    m: Any = step.module
    grid = m.output_grid
    if grid is None:
        graph.quantized(rectify(graph, value, relu, m.ceiling), step, None, None)
        return
    plain = (max(grid.zero_point, 0) if relu else 0, 255)
    if (m.low, m.high) != plain:
        graph.quantized(value, step, grid, (m.low, m.high))
    else:
        graph.quantized(rectify(graph, value, relu, None), step, grid, None)


def _quantize(graph: QdqWriter, step: Step) -> None:
    m: Any = step.module
    grid = Grid(m.scale, m.zero_point, m.quant_min, m.quant_max)
    graph.quantized(step.inputs[0], step, grid, _narrower(grid))


def _narrower(grid: Grid) -> tuple[int, int] | None:
    limits = grid.limits(False, None)
    return None if limits == (0, 255) else limits


def _layer(graph: QdqWriter, step: Step) -> None:
    m: Any = step.module
    weight = graph.node(
        "DequantizeLinear", [graph.constant(m.weight), graph.constant(m.weight_scale)], axis=0
    )
    bias_scale = graph.constant(m.weight_scale * np.float32(m.input_grid.scale))
    bias = graph.node("DequantizeLinear", [graph.constant(m.bias), bias_scale], axis=0)
    inputs = [graph.floats(step.inputs[0]), weight, bias]
    conv = isinstance(m, IntegerConv2d)
    value = convolve(graph, inputs, m.geometry) if conv else multiply(graph, inputs)
    _rectified(graph, value, step, m.relu)


def _add(graph: QdqWriter, step: Step) -> None:
    m: Any = step.module
    _rectified(graph, graph.node("Add", [graph.floats(name) for name in step.inputs]), step, m.relu)


def _relu(graph: QdqWriter, step: Step) -> None:
    _rectified(graph, graph.floats(step.inputs[0]), step)


def _concat(graph: QdqWriter, step: Step) -> None:
    m: Any = step.module
    # Each part is clipped by itself: OpenVINO 2026.4 gives a clip that follows the first part's scale to all.
    limits = _narrower(m.output_grid)
    parts = [graph.clip(graph.floats(name), m.output_grid, limits) for name in step.inputs]
    graph.quantized(graph.node("Concat", parts, axis=m.dim), step, m.output_grid, None)


def _max_pool(graph: QdqWriter, step: Step) -> None:
    before, after = (graph.samples[name].shape[2:] for name in (step.inputs[0], step.name))
    window = max_window(step.module, before, after)
    _same_grid(graph, graph.node("MaxPool", [graph.floats(step.inputs[0])], **window), step)


def _average(graph: QdqWriter, step: Step) -> None:
    m: Any = step.module
    sizes = graph.samples[step.inputs[0]].shape, graph.samples[step.name].shape
    _same_grid(graph, average(graph, graph.floats(step.inputs[0]), m, sizes), step)


def _flatten(graph: QdqWriter, step: Step) -> None:
    _same_grid(graph, graph.node("Flatten", [graph.floats(step.inputs[0])], axis=1), step)


def _same_grid(graph: QdqWriter, value: str, step: Step) -> None:
    """What chooses or averages keeps the grid, and cannot leave its limits."""
    graph.quantized(value, step, graph.grids[step.inputs[0]], None)


def _dequantize(graph: QdqWriter, step: Step) -> None:
    graph.node("Identity", [graph.floats(step.inputs[0])], step.name)


QDQ_WRITERS: dict[type[nn.Module], Callable[[QdqWriter, Step], None]] = {
    Quantize: _quantize,
    IntegerConv2d: _layer,
    IntegerLinear: _layer,
    IntegerAdd: _add,
    IntegerReLU: _relu,
    IntegerConcat: _concat,
    IntegerMaxPool2d: _max_pool,
    IntegerAvgPool2d: _average,
    IntegerAdaptiveAvgPool2d: _average,
    Flatten: _flatten,
    Dequantize: _dequantize,
}
"""How each module of the integer network becomes a float operator between its quantizations."""

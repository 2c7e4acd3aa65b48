"""Where int8's time goes: one ingredient at a time, exchanged in one layer and in the whole exact reference.

The reference computes every layer as windows (im2col), an int8 product, an offset, a requantization. Each
function here replaces one of these and leaves the rest as it is, so that a difference in time has one cause.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from quantlib.quantization.integer_graph import Integer
from quantlib.quantization.integer_layers import IntegerConv2d, IntegerLayer, IntegerLinear
from quantlib.quantization.integer_matmul import exact_matmul, int_matmul
from quantlib.quantization.kernels import int8_conv, pack_conv

Accumulate = Callable[[IntegerLayer, Tensor], Tensor]
"""From a layer's uint8 input to its int32 accumulators."""


def subtracted_first(layer: IntegerLayer, q: Tensor) -> Tensor:
    """sum (q - zero_point) w as it is written: the differences need 9 bits, so no int8 kernel takes them."""
    rows, weight, shape = layer.rows(q)
    products = exact_matmul(rows.double() + (128 - layer.input_grid.zero_point), weight)
    return (products.long().int() + layer.bias).view(*shape).movedim(-1, 1)


def corrected_each_call(layer: IntegerLayer, q: Tensor) -> Tensor:
    """sum q w - zero_point sum w: an int8 product, but the second term is summed anew by every call."""
    rows, weight, shape = layer.rows(q)
    acc = int_matmul(rows, weight)
    sums = layer.weight.flatten(1).sum(1, dtype=torch.int32)
    acc = acc - (layer.input_grid.zero_point - 128) * sums
    return (acc + layer.bias).view(*shape).movedim(-1, 1)


def with_weight_zero_point(layer: IntegerLayer, q: Tensor) -> Tensor:
    """What weights with a zero point (here 0) add: the sum over every window, which no hoisting removes."""
    rows, weight, shape = layer.rows(q)
    acc = int_matmul(rows, weight).add_(layer.offset + 128 * layer.weight_sum)
    windows = rows.sum(2, dtype=torch.int32).t().repeat_interleave(weight.shape[2], 1)
    return acc.sub_(windows.mul_(0)).view(*shape).movedim(-1, 1)


def looked_up(layer: IntegerLayer, q: Tensor) -> Tensor:
    """Weights as 4-bit places in a table of 16 values, looked up before every product."""
    rows, weight, shape = layer.rows(q)
    codes, table = _codebook(layer, weight)
    acc = int_matmul(rows, torch.index_select(table, 0, codes).view_as(weight))
    acc.add_(layer.offset + 128 * layer.weight_sum)
    return acc.view(*shape).movedim(-1, 1)


def _codebook(layer: IntegerLayer, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and table, made once: 16 levels over the int8 range, near the weights."""
    if not hasattr(layer, "_codes"):
        table = torch.linspace(-120, 120, 16).round().to(torch.int8)
        codes = ((weight.int() + 128) // 16).clamp_(0, 15)
        layer._codes = codes.flatten(), table  # type: ignore[assignment]
    return layer._codes  # type: ignore[return-value]


def direct(layer: IntegerLayer, q: Tensor) -> Tensor:
    """oneDNN's convolution instead of windows and a product: the windows are never written to memory.

    Its sums come out as float32, exact up to 2**24, and become int32 again.
    """
    if isinstance(layer, IntegerLinear):
        return IntegerLayer.accumulate(layer, q)
    assert isinstance(layer, IntegerConv2d)
    ones, zeros = torch.ones(len(layer.weight)), torch.zeros(len(layer.weight), dtype=torch.int8)
    key = tuple(q.shape[1:])
    if getattr(layer, "_packed", (None, None))[0] != key:
        layer._packed = key, pack_conv(layer.weight, ones, layer.geometry, list(q.shape))  # type: ignore
    grid = (1.0, layer.input_grid.zero_point)
    sums = int8_conv(q, grid, layer._packed[1], ones, zeros, None, layer.geometry, False)  # type: ignore
    return sums.to(torch.int32).add_(layer.bias.view(-1, 1, 1))


ZERO_POINT: dict[str, Accumulate] = {
    "subtracted_first": subtracted_first,
    "corrected_each_call": corrected_each_call,
    "hoisted": IntegerLayer.accumulate,
    "weight_zero_point": with_weight_zero_point,
}
WINDOWS: dict[str, Accumulate] = {"im2col": IntegerLayer.accumulate, "direct": direct}
TABLES: dict[str, Accumulate] = {"int8_weights": IntegerLayer.accumulate, "look_up": looked_up}


def with_accumulate(model: Integer, accumulate: Accumulate) -> Integer:
    """A copy of the network whose layers sum their products by `accumulate`. Introduced in notebook 18."""
    changed = copy.deepcopy(model)
    for module in changed.modules():
        if isinstance(module, IntegerLayer):
            module.accumulate = partial(accumulate, module)  # type: ignore[method-assign]
    return changed


def with_rounding(model: Integer, rounding: str) -> Integer:
    """A copy of the network that requantizes by another of ROUNDINGS. Introduced in notebook 18."""
    changed = copy.deepcopy(model)
    for module in changed.modules():
        if hasattr(module, "rounding"):
            module.rounding = rounding  # type: ignore[assignment]
    return changed

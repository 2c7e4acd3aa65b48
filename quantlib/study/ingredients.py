"""Where int8's time goes: one ingredient at a time, exchanged in one layer and in the whole exact reference.

The reference computes every layer as windows (im2col), an int8 product, an offset, a requantization. Each
function here replaces one of these and leaves the rest as it is, so that a difference in time has one cause.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from quantlib.quantization.integer_graph import Integer
from quantlib.quantization.integer_layers import IntegerConv2d, IntegerLayer, IntegerLinear
from quantlib.quantization.integer_matmul import exact_matmul, int_matmul
from quantlib.quantization.kernels import int8_conv, pack_conv
from quantlib.study import results
from quantlib.study.race import AT_LEAST, PAUSE
from quantlib.subject.benchmark import interleave, ratio

Accumulate = Callable[[IntegerLayer, Tensor], Tensor]
"""From a layer's uint8 input to its int32 accumulators."""

_CODES: WeakKeyDictionary[IntegerLayer, tuple[Tensor, Tensor]] = WeakKeyDictionary()
_PACKED: WeakKeyDictionary[IntegerLayer, tuple[tuple[int, ...], Tensor]] = WeakKeyDictionary()
"""What a layer's variants make once: kept beside the layer, because packed weights cannot be copied."""


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
    acc.add_(layer.bias - (layer.input_grid.zero_point - 128) * sums)
    return acc.view(*shape).movedim(-1, 1)


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
    if layer not in _CODES:
        table = torch.linspace(-120, 120, 16).round().to(torch.int8)
        codes = ((weight.int() + 128) // 16).clamp_(0, 15)
        _CODES[layer] = codes.flatten(), table
    return _CODES[layer]


def direct(layer: IntegerLayer, q: Tensor) -> Tensor:
    """oneDNN's convolution instead of windows and a product: the windows are never written to memory.

    Its sums come out as float32, exact up to 2**24, and become int32 again.
    """
    if isinstance(layer, IntegerLinear):
        return IntegerLayer.accumulate(layer, q)
    assert isinstance(layer, IntegerConv2d)
    ones, zeros = torch.ones(len(layer.weight)), torch.zeros(len(layer.weight), dtype=torch.int8)
    key = tuple(q.shape[1:])
    if layer not in _PACKED or _PACKED[layer][0] != key:
        _PACKED[layer] = key, pack_conv(layer.weight, ones, layer.geometry, list(q.shape))
    grid, packed = (1.0, layer.input_grid.zero_point), _PACKED[layer][1]
    sums = int8_conv(q, grid, packed, ones, zeros, None, layer.geometry, False)
    return sums.to(torch.int32).add_(layer.bias.view(-1, 1, 1))


ZERO_POINT: dict[str, Accumulate] = {
    "subtracted_first": subtracted_first,
    "corrected_each_call": corrected_each_call,
    "hoisted": IntegerLayer.accumulate,
    "weight_zero_point": with_weight_zero_point,
}
"""What is done about the zero point."""
WINDOWS: dict[str, Accumulate] = {"im2col": IntegerLayer.accumulate, "direct": direct}
"""How the windows of a convolution are read."""
TABLES: dict[str, Accumulate] = {"int8_weights": IntegerLayer.accumulate, "look_up": looked_up}
"""How weights are kept."""


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


def ingredient_rows(
    ingredient: str, place: str, calls: Mapping[str, Callable[[], Any]], repeats: int, batch: int
) -> list[dict[str, Any]]:
    """Time one ingredient's variants in turn: rows of milliseconds, and of speedup over the first variant.

    place: "layer" or "network". Introduced in notebook 18.
    """
    with torch.no_grad():
        timings = interleave(calls, repeats, at_least=AT_LEAST, pause=PAUSE)
    slow, rows = next(iter(calls)), []
    about: dict[str, Any] = {"ingredient": ingredient, "place": place, "batch": batch, "n": repeats}
    for name, timing in timings.items():
        spent = (1000 * seconds for seconds in (timing.median, timing.low, timing.high))
        value, low, high = spent
        rows.append(results.row(name, "milliseconds", value, low=low, high=high, **about))
        if name != slow:
            times, low, high = ratio(timings, slow, name)
            rows.append(results.row(name, "speedup", times, low=low, high=high, **about))
    return rows

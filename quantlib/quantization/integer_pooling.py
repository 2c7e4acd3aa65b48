"""The integer operators without weights: addition, ReLU, concatenation and the poolings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from quantlib.quantization.integer_layers import Grid, IntegerOperator
from quantlib.quantization.kernels import quantize_uint8
from quantlib.quantization.observers.base import flat
from quantlib.quantization.requantize import float_multiplier, requantize, rescale

Side = int | tuple[int, ...]
"""One number for height and width, or one for each."""

HEADROOM = 20
"""Bits that TFLite shifts both summands up by, so that their rescaling loses nothing that matters."""

BYTES = torch.arange(256, dtype=torch.int32)
"""All that a uint8 can be."""


class IntegerAdd(IntegerOperator):
    """relu(a + b) of a residual block: two uint8 grids become a third.

        float:   clamp(rint(fma(qa, ra, fma(qb, rb, zy - fma(ra, za, rb * zb))))), ra = sa / sy, rb = sb / sy,
                 float32, each fma rounded once; the zero point is inside the rounding
        others:  round((round((qa - za) * 2**20 * Ma) + round((qb - zb) * 2**20 * Mb)) * My) + zy, where
                 Ma = sa / t, Mb = sb / t, My = t / (2**20 * sy), t = 2 * max(sa, sb)

    Source: ONNX Runtime's QLinearAdd; TFLite's add. torch's quantized add multiplies the sum of the values
    by 1 / sy and adds zy last: another answer at ties. Introduced in notebook 08.
    """

    settings = ("input_grids", "output_grid", "relu", "ceiling", "rounding")

    def __init__(
        self, *, input_grids: Sequence[Grid], output_grid: Grid, relu: bool = False,
        ceiling: float | None = None, rounding: str = "float",
    ) -> None:  # fmt: skip
        super().__init__()
        self.input_grids, self.output_grid = tuple(input_grids), output_grid
        self.relu, self.ceiling, self.rounding = relu, ceiling, rounding
        self.low, self.high = output_grid.limits(relu, ceiling)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Bring both to one scale, add, requantize."""
        if self.rounding == "float":
            return quantize_uint8(self._sum(a, b), 1.0, 0, self.low, self.high)
        twice = 2 * max(grid.scale for grid in self.input_grids)
        total = self._summand(0, a, twice) + self._summand(1, b, twice)
        m, zero_point = _double(twice / (2**HEADROOM * self.output_grid.scale)), self.output_grid.zero_point
        return requantize(total, m, zero_point, self.low, self.high, self.rounding)

    def _summand(self, place: int, q: Tensor, twice: float) -> Tensor:
        grid = self.input_grids[place]
        table = rescale((BYTES - grid.zero_point) << HEADROOM, _double(grid.scale / twice), self.rounding)
        return lookup(table, q)

    def _sum(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum in steps of the output, zero point included, not yet rounded: float32."""
        # float64 holds 8 by 24 bits and an addend exactly, so each .float() is an fma's one rounding.
        out = self.output_grid
        ra, rb = (float_multiplier(grid.scale, 1.0, out.scale).double() for grid in self.input_grids)
        za, zb = (grid.zero_point for grid in self.input_grids)
        fixed = (out.zero_point - (ra * za + (rb * zb).float()).float().double()).float()
        inner = (BYTES * rb + fixed).float()
        return (a.double().mul_(ra) + lookup(inner, b)).float()


def lookup(table: Tensor, q: Tensor) -> Tensor:
    """table[q] for uint8 `q`: all that a function of one byte can give is computed once, 256 values."""
    q = q.contiguous(memory_format=torch.channels_last) if q.dim() == 4 else q.contiguous()
    out = torch.empty_like(q, dtype=table.dtype)
    torch.index_select(table, 0, flat(q).int(), out=flat(out))
    return out


def _double(m: float) -> Tensor:
    return torch.tensor(m, dtype=torch.float64)


class IntegerReLU(IntegerOperator):
    """relu(q) from one grid to another: clamp(round((q - z_in) * s_in / s_out) + z_out, z_out, high).

    Introduced in notebook 08.
    """

    settings = ("input_grid", "output_grid", "ceiling", "rounding")

    def __init__(
        self, *, input_grid: Grid, output_grid: Grid, ceiling: float | None = None, rounding: str = "float"
    ) -> None:
        super().__init__()
        self.input_grid, self.output_grid = input_grid, output_grid
        self.ceiling, self.rounding = ceiling, rounding
        self.low, self.high = output_grid.limits(True, ceiling)

    def forward(self, q: Tensor) -> Tensor:
        """Change the grid; what is below zero becomes zero."""
        return regrid(q, self.input_grid, self.output_grid, (self.low, self.high), self.rounding)


class IntegerConcat(IntegerOperator):
    """Join tensors along `dim`, each brought to the output's grid first. Introduced in notebook 08."""

    settings = ("input_grids", "output_grid", "dim", "rounding")

    def __init__(
        self, *, input_grids: Sequence[Grid], output_grid: Grid, dim: int = 1, rounding: str = "float"
    ) -> None:
        super().__init__()
        self.input_grids, self.output_grid = tuple(input_grids), output_grid
        self.dim, self.rounding = dim, rounding

    def forward(self, *tensors: Tensor) -> Tensor:
        """Change grids where they differ, then concatenate."""
        out = self.output_grid
        limits = out.limits(False, None)
        pairs = zip(tensors, self.input_grids, strict=True)
        return torch.cat([regrid(q, grid, out, limits, self.rounding) for q, grid in pairs], self.dim)


def regrid(q: Tensor, old: Grid, new: Grid, limits: tuple[int, int], rounding: str) -> Tensor:
    """clamp(round((q - z_old) * s_old / s_new) + z_new, low, high); just the clamp between equal grids.

    The rounding `float` multiplies, then divides, in float32, as ONNX Runtime's QLinearConcat does.
    """
    if old == new:
        return q.clamp(*limits)
    steps = q.int() - old.zero_point
    if rounding == "float":
        quotient = (steps.float() * old.scale).div_(torch.tensor(new.scale))
        return quantize_uint8(quotient, 1.0, new.zero_point, *limits)
    return requantize(steps, float_multiplier(old.scale, 1.0, new.scale), new.zero_point, *limits, rounding)


class IntegerPool2d(IntegerOperator):
    """A pooling; it keeps the grid. Without one it works on int32 accumulators, whose zero is 0."""

    settings: ClassVar[tuple[str, ...]] = ("output_grid",)

    def __init__(self, *, output_grid: Grid | None) -> None:
        super().__init__()
        self.output_grid = output_grid


class IntegerMaxPool2d(IntegerPool2d):
    """The largest integer of each window; padding never wins. Introduced in notebook 08."""

    settings = ("output_grid", "kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def __init__(
        self, *, output_grid: Grid | None, kernel_size: Side, stride: Side,
        padding: Side = 0, dilation: Side = 1, ceil_mode: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(output_grid=output_grid)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.dilation, self.ceil_mode = dilation, ceil_mode

    def forward(self, q: Tensor) -> Tensor:
        """Compare integers, as int32: torch numbers the places of a uint8 map in uint8 too, and runs out."""
        window = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        return F.max_pool2d(q.int(), *window).to(q.dtype)


class IntegerAvgPool2d(IntegerPool2d):
    """The mean of each window, on its own grid: round((sum - n * z) * (1 / n)) + z.

    Half goes to even under the rounding `float`, and up otherwise, as in TFLite. Of accumulators it is
    round(2^fraction_bits * sum / n): their own step is coarse beside logits of few bits.
    Introduced in notebook 08.
    """

    settings = (
        "output_grid", "rounding", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
        "divisor_override", "fraction_bits",
    )  # fmt: skip

    def __init__(
        self, *, output_grid: Grid | None, kernel_size: Side, stride: Side,
        padding: Side = 0, ceil_mode: bool = False, count_include_pad: bool = True,
        divisor_override: int | None = None, rounding: str = "float", fraction_bits: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(output_grid=output_grid)
        self.fraction_bits = checked_bits(fraction_bits)
        self.kernel_size, self.stride, self.padding, self.rounding = kernel_size, stride, padding, rounding
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad
        self.divisor_override = divisor_override

    def forward(self, q: Tensor) -> Tensor:
        """Average integers; the border counts as zeros, or not at all."""
        window = (self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
        zero = 0 if self.output_grid is None else self.output_grid.zero_point
        sums = F.avg_pool2d(q.double() - zero, *window, divisor_override=1)
        ones = torch.ones(1, 1, *q.shape[2:], dtype=torch.float64)
        inside = F.avg_pool2d(ones, *window, divisor_override=1)
        count = inside / F.avg_pool2d(ones, *window, divisor_override=self.divisor_override)
        return rounded_mean(sums, torch.round(count), self.output_grid, self.rounding, self.fraction_bits)


class IntegerAdaptiveAvgPool2d(IntegerPool2d):
    """The mean of each of output_size windows, on its own grid: round((sum - n * z) * (1 / n)) + z.

    Rounds as IntegerAvgPool2d. Introduced in notebook 08.
    """

    settings = ("output_grid", "rounding", "output_size", "fraction_bits")

    def __init__(
        self, *, output_grid: Grid | None, output_size: int | None | tuple[int | None, ...],
        rounding: str = "float", fraction_bits: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(output_grid=output_grid)
        self.output_size, self.rounding = output_size, rounding
        self.fraction_bits = checked_bits(fraction_bits)

    def forward(self, q: Tensor) -> Tensor:
        """Average integers over windows that cover the map."""
        zero = 0 if self.output_grid is None else self.output_grid.zero_point
        means = F.adaptive_avg_pool2d(q.double() - zero, self.output_size)  # type: ignore[arg-type]
        height, width = (
            [-((-(i + 1) * total) // parts) - i * total // parts for i in range(parts)]
            for total, parts in zip(q.shape[2:], means.shape[2:], strict=True)
        )
        count = torch.tensor(height, dtype=torch.float64)[:, None] * torch.tensor(width)
        sums = torch.round(means * count)
        return rounded_mean(sums, count, self.output_grid, self.rounding, self.fraction_bits)


def checked_bits(fraction_bits: int) -> int:
    """The same number; ValueError for one that 32 bits have no room for: it may come from a file."""
    if not 0 <= fraction_bits <= 30:
        raise ValueError(f"fraction_bits is {fraction_bits}, not 0 to 30")
    return fraction_bits


def rounded_mean(
    sums: Tensor, count: Tensor, grid: Grid | None, rounding: str, fraction_bits: int = 0
) -> Tensor:
    """round(sums / count) + zero_point as uint8; without a grid round(2^fraction_bits * sums / count), int32.

    The rounding `float` is a requantization with M = 1 / count, as in ONNX Runtime. Otherwise float64 stands
    for integers: a quotient of two is a half exactly, or further from it than the last bit.
    """
    if grid is None:
        return torch.round(sums / (count / 2**fraction_bits)).to(torch.int32)
    if rounding == "float":
        mean = torch.round(sums.float() * (1.0 / count.float()))
    else:
        mean = torch.floor(sums / count + 0.5)
    return (mean + grid.zero_point).clamp(grid.quant_min, grid.quant_max).to(torch.int32).to(torch.uint8)

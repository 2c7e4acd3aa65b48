"""The integer operators that work value by value: addition, ReLU and concatenation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quantlib.quantization.integer_layers import Grid, IntegerOperator
from quantlib.quantization.kernels import quantize_uint8
from quantlib.quantization.observers.base import flat
from quantlib.quantization.requantize import float_multiplier, requantize, rescale

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

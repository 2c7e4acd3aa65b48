"""Properties of the affine grid, from hand vectors and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from quantlib.errors import ConfigError, NonFiniteError
from quantlib.quantization.affine import (
    EPS,
    QParams,
    dequantize,
    fake_quantize,
    fake_quantize_by_formula,
    qparams_from_range,
    quant_range,
    quantize,
)

bits = st.integers(2, 8)
flags = st.booleans()
ends = st.floats(2**-10, 1000.0, width=32)
arrays = hnp.arrays("float32", st.integers(1, 50), elements=st.floats(-2000, 2000, width=32))


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ((8, True), (-128, 127)),
        ((8, True, True), (-127, 127)),
        ((8, False), (0, 255)),
        ((8, False, True), (1, 255)),
        ((2, True), (-2, 1)),
        ((2, True, True), (-1, 1)),
        ((3, False), (0, 7)),
    ],
)
def test_quant_range(arguments: tuple[int, bool], expected: tuple[int, int]) -> None:
    assert quant_range(*arguments) == expected


@pytest.mark.parametrize("value", [1, 9, 0, -8, 8.0, "8", True, None])
def test_bits_outside_2_to_8(value: object) -> None:
    with pytest.raises(ConfigError, match="from 2 to 8"):
        quant_range(value, True)  # type: ignore[arg-type]


def test_127_or_127_and_a_half() -> None:
    full = qparams_from_range(-1.0, 1.0, signed=True, symmetric=True)
    narrow = qparams_from_range(-1.0, 1.0, signed=True, symmetric=True, narrow_range=True)
    x = torch.tensor([-1.0, 1.0])
    assert full.scale == torch.tensor(1 / 127.5) and full.dtype == torch.int8
    assert narrow.scale == torch.tensor(1 / 127) and quantize(x, narrow).tolist() == [-127, 127]
    # On the full range -amax is a tie at -127.5, settled by the last bit of 1 / scale; amax is always 127.
    landed = set()
    for amax in torch.linspace(0.5, 2, 200):
        grid = qparams_from_range(-amax, amax, signed=True, symmetric=True)
        landed.add(tuple(quantize(torch.stack([-amax, amax]), grid).tolist()))
    assert landed == {(-128, 127), (-127, 127)}


def test_symmetric_unsigned_is_the_signed_grid_shifted() -> None:
    x = torch.linspace(-1.2, 1.2, 1001)
    for b in range(2, 9):
        signed = qparams_from_range(-1.0, 0.5, bits=b, signed=True, symmetric=True)
        unsigned = qparams_from_range(-1.0, 0.5, bits=b, symmetric=True)
        assert int(unsigned.zero_point) == 2 ** (b - 1)
        assert torch.equal(quantize(x, unsigned).int(), quantize(x, signed).int() + 2 ** (b - 1))


def test_rounding_is_half_to_even_and_zero_point_comes_after() -> None:
    grid = QParams(torch.tensor(1.0), torch.tensor(3), 0, 255)
    # With the zero point added first, 0.5 + 3 would round to 4 and 1.5 + 3 to 4.
    assert quantize(torch.tensor([-0.5, 0.5, 1.5, 2.5]), grid).tolist() == [3, 3, 5, 5]


def test_all_zero_tensor() -> None:
    grid = qparams_from_range(0.0, 0.0)
    assert float(grid.scale) == EPS and int(grid.zero_point) == 0
    assert fake_quantize(torch.zeros(3), grid).tolist() == [0, 0, 0]


def test_bits_and_dtype() -> None:
    for b in range(2, 9):
        for signed in (False, True):
            for narrow in (False, True):
                grid = qparams_from_range(-1.0, 1.0, bits=b, signed=signed, narrow_range=narrow)
                assert grid.bits == b and grid.dtype == (torch.int8 if signed else torch.uint8)


@pytest.mark.parametrize(
    "low, high, error, words",
    [
        (float("nan"), 1.0, NonFiniteError, "finite"),
        (0.0, float("inf"), NonFiniteError, "finite"),
        (-3e38, 3e38, NonFiniteError, "too wide"),
        (1.0, -1.0, ConfigError, "minimum <= maximum"),
    ],
)
def test_bad_ranges(low: float, high: float, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        qparams_from_range(low, high)


def test_shapes_must_agree_with_axis() -> None:
    for scale, zero_point, axis in ((1.0, [0], None), ([1.0], [0], None), (1.0, 0, 0), ([1.0], [0, 1], 0)):
        with pytest.raises(ConfigError, match="shape"):
            QParams(torch.tensor(scale), torch.tensor(zero_point), 0, 255, axis)
    with pytest.raises(ConfigError, match="floating-point"):
        quantize(torch.tensor([1]), qparams_from_range(0.0, 1.0))


@given(arrays, ends, ends, bits, flags, flags, flags)
@settings(max_examples=150, deadline=None)
def test_round_trip(
    values: Tensor, low: float, high: float, b: int, signed: bool, symmetric: bool, narrow: bool
) -> None:
    x = torch.from_numpy(values)
    grid = qparams_from_range(-low, high, bits=b, signed=signed, symmetric=symmetric, narrow_range=narrow)
    y = fake_quantize(x, grid)
    assert torch.equal(y, fake_quantize_by_formula(x, grid))
    assert torch.equal(fake_quantize(y, grid), y), "idempotent"
    assert fake_quantize(torch.zeros(1), grid).item() == 0.0, "zero is a level"
    order = x.argsort()
    assert (y[order].diff() >= 0).all(), "monotone"
    # Inside the grid the error is at most half a step; the slack is a few float32 roundings of x / scale.
    scale, zero = Fraction(float(grid.scale)), int(grid.zero_point)
    least, most = (grid.quant_min - zero) * scale, (grid.quant_max - zero) * scale
    for value, level in zip(x.tolist(), y.tolist(), strict=True):
        if least <= Fraction(value) <= most:
            assert abs(Fraction(value) - Fraction(level)) <= scale / 2 * (1 + Fraction(1, 2**14))
    q = quantize(x, grid)
    assert int(q.min()) >= grid.quant_min and int(q.max()) <= grid.quant_max
    assert torch.equal(quantize(dequantize(q, grid), grid), q), "every integer survives"


@given(ends, ends, bits, flags)
@settings(max_examples=100, deadline=None)
def test_range_is_covered(low: float, high: float, b: int, signed: bool) -> None:
    grid = qparams_from_range(-low, high, bits=b, signed=signed)
    ends_of_grid = dequantize(torch.tensor([grid.quant_min, grid.quant_max]), grid)
    # Rounding the zero point can move the grid by half a step.
    assert ends_of_grid[0] <= -low + 0.51 * grid.scale and ends_of_grid[1] >= high - 0.51 * grid.scale


@given(st.integers(0, 3), flags)
@settings(max_examples=20, deadline=None)
def test_per_channel_is_per_tensor_on_each_channel(axis: int, symmetric: bool) -> None:
    x = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(axis))
    low, high = x.movedim(axis, 0).flatten(1).aminmax(dim=1)
    grid = qparams_from_range(low, high, symmetric=symmetric, signed=symmetric, axis=axis)
    q, y = quantize(x, grid), fake_quantize(x, grid)
    assert torch.equal(fake_quantize(x, grid), fake_quantize_by_formula(x, grid))
    for c in range(3):
        one = qparams_from_range(low[c], high[c], symmetric=symmetric, signed=symmetric)
        assert torch.equal(q.select(axis, c), quantize(x.select(axis, c), one))
        assert torch.equal(y.select(axis, c), fake_quantize(x.select(axis, c), one))


def test_negative_axis() -> None:
    x = torch.randn(2, 5)
    grid = qparams_from_range(x.amin(0), x.amax(0), axis=-1)
    assert torch.equal(fake_quantize(x, grid), fake_quantize_by_formula(x, grid))

"""Requantization against exact rational arithmetic and the hand vectors of the reference."""

from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.errors import ConfigError
from quantlib.quantization.requantize import (
    ROUNDINGS,
    float_multiplier,
    quantize_multiplier,
    requantize,
    rescale,
)

LIMITS = -(2**31), 2**31 - 1
accumulators = st.integers(*LIMITS)
multipliers = st.floats(2**-31, 2**4, width=32)


def half_away(x):
    return (1 if x >= 0 else -1) * floor(abs(x) + Fraction(1, 2))


def saturated(x):
    return min(max(x, LIMITS[0]), LIMITS[1])


def as_fraction(m):
    """m0 and exponent as exact numbers: their definition, without any floating point."""
    exponent = 0
    while Fraction(m) / Fraction(2) ** exponent >= 1:
        exponent += 1
    while Fraction(m) / Fraction(2) ** exponent < Fraction(1, 2):
        exponent -= 1
    m0 = half_away(Fraction(m) / Fraction(2) ** exponent * 2**31)
    return (2**30, exponent + 1) if m0 == 2**31 else (m0, exponent)


@settings(deadline=None, max_examples=200)
@given(m=multipliers)
def test_multiplier_is_its_definition(m):
    assert tuple(part.item() for part in quantize_multiplier(torch.tensor(m))) == as_fraction(m)


def test_a_python_number_keeps_its_bits():
    """TFLite's rule in exact arithmetic: 0.1 = f * 2**-3, and f * 2**31 rounded."""
    exact = Fraction(0.1) * 2**3 * 2**31
    assert [part.item() for part in quantize_multiplier(0.1)] == [round(exact), -3] == [1717986918, -3]


def test_multiplier_carries_and_has_ends():
    nearly_one = torch.tensor(1 - 2**-40, dtype=torch.float64)
    assert [part.item() for part in quantize_multiplier(nearly_one)] == [2**30, 1]
    m0, exponent = quantize_multiplier(torch.tensor([2.0**-33, 2.0**-32, 2.0**29, 2.0**30]))
    assert m0.tolist() == [0, 2**30, 2**30, 2**31 - 1] and exponent.tolist() == [-31, -31, 30, 30]
    huge, tiny = torch.tensor([2**31 - 1, -5, 0]), torch.tensor(2.0**-40)
    for rule in ("gemmlowp", "single_rounding"):
        assert rescale(huge, tiny, rule).tolist() == [0, 0, 0]
        high, low, zero = rescale(huge, torch.tensor(2.0**32), rule).tolist()
        assert high >= LIMITS[1] - 1 and low <= LIMITS[0] + 1 and zero == 0


@settings(deadline=None, max_examples=300)
@given(acc=accumulators, m=multipliers)
def test_single_rounding_is_half_up_of_the_exact_product(acc, m):
    m0, exponent = as_fraction(m)
    exact = acc * m0 * Fraction(2) ** (exponent - 31)
    got = rescale(torch.tensor([acc], dtype=torch.int32), m, "single_rounding")
    assert got.dtype == torch.int32 and got.item() == saturated(floor(exact + Fraction(1, 2)))


@settings(deadline=None, max_examples=300)
@given(acc=accumulators, m=multipliers)
def test_gemmlowp_rounds_twice(acc, m):
    m0, exponent = as_fraction(m)
    # The high half: rint(2 * x * m0 / 2**32), halves up (the nudge of a negative product is one less).
    product = Fraction(saturated(acc << max(exponent, 0)) * m0, 2**31)
    high = floor(product + Fraction(1, 2))
    wanted = half_away(Fraction(high, 2 ** max(-exponent, 0)))
    assert rescale(torch.tensor([acc], dtype=torch.int32), m, "gemmlowp").item() == wanted


@settings(deadline=None, max_examples=300)
@given(acc=st.integers(-(2**24), 2**24), m=st.floats(2**-31, 1, width=32))
def test_float_is_half_even_of_the_float32_product(acc, m):
    product = Fraction(torch.tensor(float(acc)).mul(torch.tensor(m)).item())
    got = rescale(torch.tensor([acc], dtype=torch.int32), m, "float").item()
    assert got == round(product)  # Fraction rounds half to even
    assert abs(got - acc * Fraction(m)) <= Fraction(1, 2) + abs(product) / 2**23


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [("float", [0, -2, 0, 2]), ("gemmlowp", [-1, -2, 1, 2]), ("single_rounding", [0, -1, 1, 2])],
)
def test_hand_vectors(rule, wanted):
    acc = torch.tensor([-32, -96, 32, 96], dtype=torch.int32)
    assert rescale(acc, 2.0**-6, rule).tolist() == wanted
    assert requantize(acc, 2.0**-6, 128, 0, 255, rule).tolist() == [128 + q for q in wanted]
    assert requantize(acc, 2.0**-6, 3, 2, 4, rule).tolist() == [min(max(3 + q, 2), 4) for q in wanted]


@pytest.mark.parametrize("rule", ROUNDINGS)
@pytest.mark.parametrize("shape", [(50, 3), (2, 3, 4, 4)])
def test_channels_lie_on_axis_one(rule, shape):
    acc = torch.randint(-(2**20), 2**20, shape, dtype=torch.int32)
    m = torch.tensor([1e-4, 3e-4, 7e-5])
    got = requantize(acc, m, 100, 0, 255, rule)
    assert got.dtype == torch.uint8
    for channel in range(3):
        one = requantize(acc[:, channel], m[channel], 100, 0, 255, rule)
        assert torch.equal(got[:, channel], one) and len(one.unique()) > 5
        plain = (rescale(acc[:, channel], m[channel], rule) + 100).clamp(0, 255)
        assert torch.equal(one.int(), plain)


def test_layout_and_input_survive():
    acc = torch.randint(-9999, 9999, (2, 8, 3, 3), dtype=torch.int32)
    acc = acc.contiguous(memory_format=torch.channels_last)
    before = acc.clone()
    for rule in ROUNDINGS:
        out = requantize(acc, torch.rand(8) / 50, 7, 0, 255, rule)
        assert out.stride() == acc.stride() and torch.equal(acc, before)


def test_float_multiplier_rounds_after_each_step():
    s_in, s_out = torch.tensor(0.1), torch.tensor(0.7)
    s_weight = torch.rand(1000) + 0.01
    got = float_multiplier(0.1, s_weight, s_out)
    assert torch.equal(got, (s_in * s_weight) / s_out) and got.dtype == torch.float32
    once = (s_in.double() * s_weight.double() / s_out.double()).float()
    assert not torch.equal(got, once) and torch.allclose(got, once, rtol=3e-7)


def test_unknown_rounding():
    with pytest.raises(ConfigError, match="no rounding named 'gemmlow'; did you mean 'gemmlowp'"):
        rescale(torch.tensor([1]), 0.5, "gemmlow")
    with pytest.raises(ConfigError, match="no rounding named 'gemmlow'; did you mean 'gemmlowp'"):
        requantize(torch.tensor([[1]], dtype=torch.int32), 0.5, 0, 0, 255, "gemmlow")


@pytest.mark.parametrize("rule", ["float", "single_rounding"])
def test_what_is_too_large_saturates(rule):
    """gemmlowp does so before it multiplies, see test_gemmlowp_rounds_twice."""
    far = torch.tensor([2**30, -(2**30), 2**28], dtype=torch.int32)
    assert rescale(far, 4.0, rule).tolist() == [LIMITS[1], LIMITS[0], 2**30]

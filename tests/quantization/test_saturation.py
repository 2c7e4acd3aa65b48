"""The pair-sum bound and the emulator, against exhaustive search and exact products."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.errors import ConfigError
from quantlib.quantization.saturation import (
    largest_pair_sum,
    layers_at_risk,
    pair_sum_range,
    saturating_conv2d,
    saturating_linear,
)

byte = st.integers(-128, 127)


def int8(*values: int) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.int8)


@given(byte, byte, st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_bound_is_reached_and_never_passed(w0: int, w1: int, top: int) -> None:
    low, high = pair_sum_range(int8(w0, w1), top)
    sums = [a * w0 + b * w1 for a, b in itertools.product((0, top // 2, top), repeat=2)]
    assert min(sums) == low.item() and max(sums) == high.item()


@pytest.mark.parametrize(
    "pair, top, at_risk",
    [
        ((64, 64), 255, False),  # 32640
        ((64, 65), 255, True),  # 32895
        ((127, 127), 127, False),  # 32258: reduced activations
        ((127, -127), 255, False),  # opposite signs never add up
        ((-128, 0), 255, False),
        ((-128, -128), 128, False),  # -32768 is the last int16
        ((-128, -128), 129, True),
        ((127, 127), 129, False),  # 32766
        ((127, 127), 130, True),
    ],
)
def test_hand_vectors(pair: tuple[int, int], top: int, at_risk: bool) -> None:
    assert bool(layers_at_risk({"fc": (int8(*pair), top)})) == at_risk


def test_only_channels_2k_and_2k_plus_1_meet() -> None:
    assert largest_pair_sum(int8(127, 0, 0, 127)) == 127 * 255
    assert largest_pair_sum(int8(0, 127, 127, 0)) == 127 * 255
    assert largest_pair_sum(int8(0, 0, 127, 127)) == 254 * 255
    assert largest_pair_sum(int8(0, 0, 127)) == 127 * 255
    depthwise = torch.full((8, 1, 3, 3), -128, dtype=torch.int8)
    assert not layers_at_risk({"depthwise": (depthwise, 255)})


def test_risks_are_counted_and_sorted() -> None:
    mild, bad = torch.zeros(4, 4, 1, 1, dtype=torch.int8), torch.zeros(4, 4, 1, 1, dtype=torch.int8)
    mild[1, :2] = 70
    bad[:2] = 127
    risks = layers_at_risk({"mild": (mild, 255), "safe": (mild, 127), "bad": (bad, 255)})
    assert [(risk.name, risk.largest, risk.pairs, risk.channels) for risk in risks] == [
        ("bad", 254 * 255, 4, 2),
        ("mild", 140 * 255, 1, 1),
    ]


def test_emulator_is_exact_without_risk() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 6, 7, 7), generator=g).to(torch.uint8)
    w = torch.randint(-64, 65, (4, 3, 3, 3), generator=g).to(torch.int8)
    want = F.conv2d(x.double(), w.double(), stride=2, padding=1, groups=2)
    assert torch.equal(saturating_conv2d(x, w, stride=2, padding=1, groups=2).double(), want)
    rows, weights = x.flatten(1)[:, :21], w.flatten(1)[:, :21]
    assert torch.equal(saturating_linear(rows, weights).double(), rows.double() @ weights.double().t())


def test_emulator_saturates_each_pair_alone() -> None:
    x = torch.full((1, 4), 255, dtype=torch.uint8)
    assert saturating_linear(x, int8(127, 127, -128, -128)).item() == 32767 - 32768
    assert saturating_linear(x, int8(127, -128, 127, -128)).item() == -2 * 255


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="int8"):
        largest_pair_sum(torch.zeros(2, 2))
    with pytest.raises(ConfigError, match="activation_max"):
        largest_pair_sum(int8(1, 1), 256)

"""Distances between tensors, from hand vectors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantlib.errors import ConfigError
from quantlib.quantization.affine import fake_quantize, qparams_from_range
from quantlib.quantization.metrics import mse, rank_correlation, sqnr_db


def test_by_hand() -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert mse(a, b) == 0.125
    assert sqnr_db(a, b) == pytest.approx(20.0)


def test_limits() -> None:
    a, zero = torch.tensor([1.0, 2.0]), torch.zeros(2)
    assert sqnr_db(a, a) == math.inf and sqnr_db(zero, zero) == math.inf and sqnr_db(zero, a) == -math.inf


def test_a_bit_is_six_decibel() -> None:
    x = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    noise = [sqnr_db(x, fake_quantize(x, qparams_from_range(0.0, 1.0, bits=b))) for b in (5, 6, 7, 8)]
    assert [b - a for a, b in zip(noise, noise[1:], strict=False)] == pytest.approx([6.02] * 3, abs=0.3)


@pytest.mark.parametrize("metric", [mse, sqnr_db])
def test_bad_pairs(metric: Callable[[Tensor, Tensor], float]) -> None:
    with pytest.raises(ConfigError, match="one shape"):
        metric(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ConfigError, match="empty"):
        metric(torch.zeros(0), torch.zeros(0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-9, 9)), min_size=3, max_size=30))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, float]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = zip(*pairs, strict=True)
    found = rank_correlation(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = stats.spearmanr(a, b).statistic
    assert found == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_rank_correlation_mistakes() -> None:
    assert rank_correlation([1, 2, 3], [30, 20, 10]) == -1
    assert math.isnan(rank_correlation([1, 1], [1, 2]))
    for a, b in (([1.0], [1.0]), ([1, 2], [1, 2, 3]), ([1, float("nan")], [1, 2])):
        with pytest.raises(ConfigError, match="Two lists of one length"):
            rank_correlation(a, b)

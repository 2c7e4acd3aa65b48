"""Intervals and paired tests against scipy and exact arithmetic."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import nn

from quantlib.errors import ConfigError
from quantlib.subject import data
from quantlib.subject.evaluation import Evaluation, compare, compare_seeds, evaluate, mcnemar, wilson


@given(st.integers(1, 20_000), st.floats(0, 1))
def test_wilson_equals_scipy(n: int, share: float) -> None:
    correct = round(n * share)
    expected = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson(correct, n) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_equals_the_exact_binomial_test(a: int, b: int) -> None:
    expected = binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_exact_fractions() -> None:
    tail = Fraction(sum(comb(21, k) for k in range(6)), 2**21)
    assert mcnemar(5, 16) == float(2 * tail)


def setting(right: list[bool]) -> Evaluation:
    labels = np.arange(len(right)) % 10
    return Evaluation.of(np.where(right, labels, (labels + 1) % 10), labels)


def test_compare_counts_by_hand() -> None:
    a = setting([True] * 8 + [False] * 2)
    b = setting([True] * 5 + [False] * 4 + [True])
    result = compare(a, b)
    assert (result.only_a, result.only_b, result.changed, result.n) == (3, 1, 4, 10)
    assert result.drop == pytest.approx(20.0)
    assert result.low <= 20 <= result.high
    assert result.p_value == 0.625  # four throws of a coin: 2 (1 + 4) / 16


def test_a_setting_against_itself_has_no_drop_and_no_doubt() -> None:
    a = setting([True, False] * 50)
    result = compare(a, a)
    assert (result.drop, result.low, result.high, result.changed, result.p_value) == (0, 0, 0, 0, 1)


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(10_000) < 0.94
    other = right.copy()
    other[:20] = ~other[:20]
    result = compare(setting(list(right)), setting(list(other)))
    assert result.high - result.low < 0.25  # two independent intervals would give about 0.93


def test_bootstrap_interval_agrees_with_the_normal_one() -> None:
    a = setting([True] * 600 + [False] * 400)
    b = setting([True] * 500 + [False] * 450 + [True] * 50)
    result = compare(a, b)
    se = 100 * np.sqrt((150 / 1000 - 0.05**2) / 1000)
    assert result.low == pytest.approx(5 - 1.96 * se, abs=0.15)
    assert result.high == pytest.approx(5 + 1.96 * se, abs=0.15)


def test_different_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="different images"):
        compare(setting([True] * 10), setting([True] * 11))
    one, other = setting([True] * 10), Evaluation.of(np.arange(10)[::-1], np.arange(10)[::-1])
    with pytest.raises(ConfigError, match="different images"):
        compare(one, other)  # as many, in another order
    with pytest.raises(ConfigError, match="same seeds on the same images"):
        compare_seeds([one, one], [one, other])
    with pytest.raises(ConfigError, match="not a share"):
        wilson(3, 0)


class Brightness(nn.Module):
    """Predicts class 1 for bright images; remembers whether it ran in eval mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        bright = x.mean((1, 2, 3)) > 0
        return torch.stack([~bright, bright] + [torch.zeros_like(bright)] * 8, 1).float()


def test_evaluate_keeps_order_and_mode_and_does_not_depend_on_the_batch() -> None:
    images = data.load("test").take(100)
    model = Brightness().train()
    whole, parts = evaluate(model, images, 100), evaluate(model, images, 7)
    assert model.training
    assert np.array_equal(whole.predictions, parts.predictions)
    bright = data.normalize(images.pixels).mean((1, 2, 3)) > 0
    assert np.array_equal(whole.predictions, bright.long().numpy())
    assert whole.accuracy == int((bright.long() == images.labels).sum())  # of 100 images


def test_no_images_is_one_sentence_and_the_mode_comes_back() -> None:
    images, model = data.load("test").take(4), nn.Sequential(nn.Flatten(), nn.Linear(5, 2)).train()
    with pytest.raises(ConfigError, match="no images to classify"):
        evaluate(model, images.take(0))
    with pytest.raises(RuntimeError):
        evaluate(model, images)
    assert model.training

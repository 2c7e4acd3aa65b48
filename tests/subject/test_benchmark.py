"""Interleaved timing: order, warm-up, ratios; the calibration error by hand."""

import time

import numpy as np
import pytest

from quantlib.errors import ConfigError
from quantlib.subject.benchmark import Timing, interleave, isa, machine, median_interval, ratio
from quantlib.subject.publish import calibration_error


def test_candidates_run_in_turn_and_the_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    timings = interleave({name: lambda n=name: calls.append(n) for name in "ab"}, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert all(len(t.runs) == 3 for t in timings.values())


def test_a_slow_candidate_shows_in_the_ratio() -> None:
    timings = interleave({"slow": lambda: time.sleep(0.04), "fast": lambda: time.sleep(0.01)}, repeats=3)
    middle, low, high = ratio(timings, "slow", "fast")
    assert low <= middle <= high and 1.5 < middle < 6


def test_short_calls_are_repeated_until_their_turn_is_filled() -> None:
    calls: list[str] = []

    def call(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds)

    rivals = {"short": lambda: call("short", 0.01), "long": lambda: call("long", 0.25)}
    timings = interleave(rivals, repeats=2, warmup=0, at_least=0.2)
    assert calls.count("long") == 2 and 4 <= calls.count("short") <= 40
    assert 0.01 <= timings["short"].median < 0.1 and timings["long"].median >= 0.25  # seconds of one call


def test_a_pause_goes_before_each_turn_and_is_not_counted() -> None:
    started = time.perf_counter()
    timings = interleave({"a": lambda: None, "b": lambda: None}, repeats=2, warmup=1, pause=0.03)
    assert time.perf_counter() - started >= 6 * 0.03
    assert timings["a"].median < 0.02


def test_ratio_is_taken_round_by_round() -> None:
    timings = {"a": Timing(4, 2, 6, (2.0, 4.0, 6.0)), "b": Timing(2, 1, 3, (1.0, 2.0, 3.0))}
    assert ratio(timings, "a", "b") == (2.0, 2.0, 2.0)


def test_no_counted_round_is_refused() -> None:
    with pytest.raises(ConfigError, match="repeats"):
        interleave({"a": lambda: None}, repeats=0)


def test_the_machine_is_named() -> None:
    assert machine()["cpu"] and isa() and machine()["threads"] >= 1


def test_calibration_error_by_hand() -> None:
    # two bins: confidence 0.9 and half right, confidence 0.6 and all right; 100 (2*0.4 + 2*0.4) / 4 = 40
    confidence, correct = np.array([0.9, 0.9, 0.6, 0.6]), np.array([1, 0, 1, 1], dtype=bool)
    assert calibration_error(confidence, correct, bins=10) == pytest.approx(40.0)


def test_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    scipy = pytest.importorskip("scipy.stats")
    for n in (6, 9, 41, 101):
        middle, low, high = median_interval([float(i) for i in range(n)])
        assert middle == (n - 1) / 2 and low + high == n - 1
        missed = 2 * scipy.binom.cdf(low, n, 0.5)  # the median lies below value number `low`, counted from 0
        wider = 2 * scipy.binom.cdf(low + 1, n, 0.5)
        assert missed <= 0.05 < wider
    assert median_interval([3.0, 1.0]) == (2.0, 1.0, 3.0)

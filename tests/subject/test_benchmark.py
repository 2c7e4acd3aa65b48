"""Interleaved timing: order, warm-up, ratios; the calibration error by hand."""

import time

import numpy as np
import pytest

from quantlib.errors import ConfigError
from quantlib.subject.benchmark import Timing, interleave, isa, machine, median_interval, ratio, timing
from quantlib.subject.evaluation import Evaluation
from quantlib.subject.publish import calibration_error, per_class


def test_candidates_run_in_turn_and_the_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    timings = interleave({name: lambda n=name: calls.append(n) for name in "ab"}, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert all(len(t.runs) == 3 for t in timings.values())


class Clock:
    """A clock that only moves when somebody sleeps: no busy machine changes what it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_slow_candidate_shows_in_the_ratio(clock: Clock) -> None:
    timings = interleave({"slow": lambda: clock.sleep(4.0), "fast": lambda: clock.sleep(1.0)}, repeats=3)
    assert ratio(timings, "slow", "fast") == (4.0, 4.0, 4.0)


def test_short_calls_are_repeated_until_their_turn_is_filled(clock: Clock) -> None:
    calls: list[str] = []

    def call(name: str, seconds: float) -> None:
        calls.append(name)
        clock.sleep(seconds)

    rivals = {"short": lambda: call("short", 0.5), "long": lambda: call("long", 3.0)}
    timings = interleave(rivals, repeats=2, warmup=0, at_least=2.0)
    assert calls == [*["short"] * 4, "long"] * 2
    assert timings["short"].runs == (0.5, 0.5) and timings["long"].runs == (3.0, 3.0)  # seconds of one call


def test_a_pause_goes_before_each_turn_and_is_not_counted(clock: Clock) -> None:
    rivals = {"a": lambda: clock.sleep(1.0), "b": lambda: clock.sleep(1.0)}
    timings = interleave(rivals, repeats=2, warmup=1, pause=8.0)
    assert clock.now == 6 * (8 + 1) and timings["a"].runs == (1.0, 1.0)


def test_a_timing_is_median_and_quartiles() -> None:
    found = timing([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.median, found.low, found.high) == (3.0, 2.0, 4.0) and found.runs[0] == 5.0


def test_accuracy_by_class_is_a_share_of_the_class() -> None:
    """Of three airplanes two are found; what else is taken for one does not count."""
    found = Evaluation.of(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]))
    assert per_class(found) == {"airplane": 66.67, "automobile": 100.0}


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
    assert calibration_error(np.array([1.0]), np.array([False])) == 100.0  # the last bin has both its ends


def test_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    scipy = pytest.importorskip("scipy.stats")
    for n in (6, 9, 41, 101):
        middle, low, high = median_interval([float(i) for i in range(n)])
        assert middle == (n - 1) / 2 and low + high == n - 1
        missed = 2 * scipy.binom.cdf(low, n, 0.5)  # the median lies below value number `low`, counted from 0
        wider = 2 * scipy.binom.cdf(low + 1, n, 0.5)
        assert missed <= 0.05 < wider
    assert median_interval([3.0, 1.0]) == (2.0, 1.0, 3.0)

"""Observers: which range should the integers cover?"""

from __future__ import annotations

import difflib
from typing import Any

from quantlib.errors import ConfigError
from quantlib.quantization.observers.aciq import AciqObserver, optimal_clip
from quantlib.quantization.observers.base import Observer
from quantlib.quantization.observers.entropy import EntropyObserver
from quantlib.quantization.observers.error import ExactHistogram, MeanSquaredErrorObserver, expected_error
from quantlib.quantization.observers.histogram import HistogramObserver
from quantlib.quantization.observers.minmax import MinMaxObserver, MovingAverageObserver
from quantlib.quantization.observers.percentile import PercentileObserver
from quantlib.quantization.observers.recording import PlaceholderObserver, RecordingObserver

OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMaxObserver,
    "moving_average": MovingAverageObserver,
    "percentile": PercentileObserver,
    "histogram": HistogramObserver,
    "mse": MeanSquaredErrorObserver,
    "entropy": EntropyObserver,
    "aciq": AciqObserver,
    "recording": RecordingObserver,
    "placeholder": PlaceholderObserver,
}
"""Every observer by the name that a Scheme gives."""


def make_observer(name: str, **options: Any) -> Observer:
    """The observer called `name`, with its options (bits, signed, symmetric, narrow_range, axis, its own).

    Raises ConfigError on an unknown name or option, listing those there are. Introduced in notebook 02.

    >>> make_observer("minmax", bits=4)
    MinMaxObserver(bits=4, 0..15, affine, per tensor)
    """
    if name not in OBSERVERS:
        close = difflib.get_close_matches(str(name), OBSERVERS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(f"There is no observer {name!r}{hint}; choose one of {', '.join(OBSERVERS)}.")
    try:
        return OBSERVERS[name](**options)
    except TypeError as error:
        raise ConfigError(f"Observer {name!r} cannot be made with these options: {error}.") from error


__all__ = [
    "OBSERVERS",
    "AciqObserver",
    "EntropyObserver",
    "ExactHistogram",
    "HistogramObserver",
    "MeanSquaredErrorObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "Observer",
    "PercentileObserver",
    "PlaceholderObserver",
    "RecordingObserver",
    "expected_error",
    "make_observer",
    "optimal_clip",
]

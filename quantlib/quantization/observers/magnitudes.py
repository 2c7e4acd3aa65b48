"""The two histograms of ONNX Runtime's calibrators, count for count: of values, and of magnitudes.

Both fix the bin width with the first batch and append bins when later batches reach further. numpy, float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantlib.errors import ConfigError

Array = np.ndarray[Any, Any]

MOST_BINS = 2**24
"""More than any calibration needs, and 128 MB of counts."""


@dataclass(frozen=True)
class NumpyHistogram:
    """counts: int64 (bins,); edges: float32 (bins + 1,); reach: the largest magnitude that they hold."""

    counts: Array
    edges: Array
    reach: Any = 0.0


def histogram(x: Array, bins: int, low: Any, high: Any) -> tuple[Array, Array]:
    """Histogram by numpy; where float32 has no `bins` steps between low and high, over a wider range."""
    try:
        return np.histogram(x, bins, range=(low, high))
    except ValueError:  # denormals, or values that differ in the last bits only
        middle = (float(low) + float(high)) / 2
        room = max(0.5, abs(middle) / 2)
        return np.histogram(x, bins, range=(middle - room, middle + room))


def count_values(old: NumpyHistogram | None, x: Array, bins: int) -> NumpyHistogram:
    """Histogram over -t..t, where t is the largest magnitude of the first batch, in `bins` bins.

    A batch that reaches further adds as many bins of the same width on both sides as it needs.
    """
    threshold = np.maximum(np.abs(x.min()), np.abs(x.max()))
    if old is None:
        return NumpyHistogram(*histogram(x, bins, -threshold, threshold), threshold)
    bins, reach = old.counts.size, old.reach
    if threshold <= reach:
        return NumpyHistogram(old.counts + histogram(x, bins, -reach, reach)[0], old.edges, reach)
    if reach == 0:  # only zeros so far, drawn over -0.5..0.5
        counts, edges = histogram(x, bins, -threshold, threshold)
        return NumpyHistogram(counts + old.counts, edges, threshold)
    width = 2 * reach / bins
    with np.errstate(over="ignore", invalid="ignore"):  # denormals: more bins than a float can count
        wanted = float((threshold - reach) // width + 1) if width else math.inf
    wanted = wanted if math.isfinite(wanted) else math.inf
    _affordable(bins + 2 * wanted, reach)
    extra = int(wanted)
    wide = extra * width + reach
    counts, edges = histogram(x, bins + 2 * extra, -wide, wide)
    counts[extra : extra + bins] += old.counts
    return NumpyHistogram(counts, edges, wide)


def _affordable(bins: float, reach: float) -> None:
    """ConfigError for a histogram of all memory: its bins are as narrow as the first batch asked."""
    if bins > MOST_BINS:
        raise ConfigError(
            f"The first batch reached only to {reach:.1e}, and now {bins:.1e} bins of its width are needed; "
            "calibrate on larger batches, or take another observer."
        )


def count_magnitudes(old: NumpyHistogram | None, x: Array, bins: int) -> NumpyHistogram:
    """Histogram of |x| from the smallest to the largest magnitude of the first batch, then extended upwards.

    Later magnitudes below the first batch's smallest are not counted: ONNX Runtime's own behaviour.
    """
    x = np.abs(x)
    if old is None:
        counts, edges = histogram(x, bins, x.min(), x.max())
        return NumpyHistogram(counts, edges.astype(np.float32), x.max())
    edges, largest = old.edges, x.max()
    if old.reach == 0 and largest > 0:  # only zeros so far, drawn over -0.5..0.5
        counts, edges = histogram(x, bins, 0, largest)
        counts[0] += old.counts.sum()
        return NumpyHistogram(counts, edges.astype(np.float32), largest)
    if largest > edges[-1]:
        width = edges[1] - edges[0]
        _affordable(edges.size + (largest - edges[-1]) / width, edges[-1])
        edges = np.hstack((edges, np.arange(edges[-1] + width, largest + width, width)))
    counts, edges = np.histogram(x, bins=edges)
    counts[: old.counts.size] += old.counts
    return NumpyHistogram(counts, edges.astype(np.float32), max(old.reach, largest))

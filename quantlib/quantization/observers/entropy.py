"""TensorRT's entropy calibration, as ONNX Runtime computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from quantlib.errors import ConfigError
from quantlib.quantization.observers.base import Observer
from quantlib.quantization.observers.magnitudes import Array, NumpyHistogram, count_values


def smooth(counts: Array) -> Array | None:
    """Counts with 1e-4 moved into every empty bin, taken evenly from the others; None when all are empty."""
    empty = (counts == 0).astype(np.float32)
    filled = counts.size - empty.sum()
    if not filled:
        return None
    taken = 1e-4 * float(empty.sum()) / float(filled)
    smoothed: Array = counts.astype(np.float32)
    smoothed += 1e-4 * empty - taken * (1 - empty)
    return smoothed


def divergence(reference: Array, candidate: Array) -> float:
    """Kullback-Leibler divergence sum p * log(p / q) of two histograms, each divided by its sum, float32."""
    p, q = smooth(reference), smooth(candidate)
    if p is None or q is None:
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    if (p <= 0).any() or (q <= 0).any():
        return float("inf")
    return float(np.sum(p * np.log(p / q)))


def coarsen(counts: Array, occupied: Array, levels: int) -> Array:
    """`counts` merged into `levels` groups, each spread back evenly over its occupied bins (whole numbers).

    The last group also takes the bins left over, but spreads over its regular width only.
    """
    width = counts.size // levels
    regular = counts[: levels * width].reshape(levels, width)
    where = occupied[: levels * width].reshape(levels, width)
    groups = regular.sum(1)
    groups[-1] += counts[levels * width :].sum()
    share = (groups / np.maximum(where.sum(1), 1)).astype(np.int64) * where.any(1)
    spread = np.zeros_like(counts)
    spread[: levels * width] = np.repeat(share, width)
    return spread


class EntropyObserver(Observer):
    """The symmetric clip whose `levels`-level histogram diverges least from the clipped original.

    Tries every -t..t from levels/2 bins on each side of zero outwards; the reference has the outliers added
    to its end bins, the candidate has not. The result is cut to the observed extremes and includes 0.
    Equal to ONNX Runtime's `HistogramCollector(method="entropy")` with the same `bins` and `levels`; its
    default of 128 bins leaves a single batch nothing to choose, hence 2,048 here. It ignores `bits`.
    State: the histogram, float32 edges fixed by the first batch, more bins when later batches reach further.
    Raises ConfigError unless 2 <= levels <= bins. Introduced in notebook 03.
    """

    def __init__(self, *args: Any, bins: int = 2048, levels: int = 128, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 2 <= levels <= bins:
            raise ConfigError(f"levels must be from 2 to bins; not levels={levels}, bins={bins}.")
        self.bins, self.levels = bins, levels
        self.histogram: NumpyHistogram | None = None

    def observe(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Add one batch to the histogram."""
        self.widen(low, high)
        self.histogram = count_values(self.histogram, x.cpu().numpy(), self.bins)

    def let_go(self) -> None:
        """Drop the histogram."""
        self.histogram = None

    def choose(self) -> tuple[Tensor, Tensor]:
        """The best clip, cut to the observed extremes, zero included."""
        minimum, maximum = self.observed()
        low, high = self.thresholds()
        low, high = max(low, minimum.item()), min(high, maximum.item())
        return minimum.new_tensor(min(low, 0.0)), maximum.new_tensor(max(high, 0.0))

    def divergences(self) -> Array:
        """The divergence of every clip tried, narrowest first, float64 (clips,)."""
        assert self.histogram is not None
        counts = self.histogram.counts
        return np.array([self._divergence(counts, *self._ends(half)) for half in self._halves()])

    def _halves(self) -> range:
        assert self.histogram is not None
        return range(self.levels // 2, self.histogram.counts.size // 2 + 1)

    def _ends(self, half: int) -> tuple[int, int]:
        """First bin and one past the last bin of the clip `half` bins on each side of the middle one."""
        assert self.histogram is not None
        bins = self.histogram.counts.size
        return bins // 2 - half, min(bins // 2 + half + 1, bins)

    def _divergence(self, counts: Array, start: int, end: int) -> float:
        inside = counts[start:end]
        reference = inside.copy()
        reference[0] += counts[:start].sum()
        reference[-1] += counts[end:].sum()
        return divergence(reference, coarsen(inside, reference != 0, self.levels))

    def thresholds(self) -> tuple[float, float]:
        """The (low, high) edges of the best clip, before the cut to the observed extremes."""
        self.observed()
        assert self.histogram is not None
        start, end = self._ends(self._halves()[int(self.divergences().argmin())])
        return float(self.histogram.edges[start]), float(self.histogram.edges[end])

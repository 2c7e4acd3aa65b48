"""Ranges that leave out a fixed share of the values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantlib.errors import ConfigError
from quantlib.quantization.observers.base import KeepingObserver
from quantlib.quantization.observers.magnitudes import NumpyHistogram, count_magnitudes, count_values


class PercentileObserver(KeepingObserver):
    """The range that holds `percentile` percent of the values (99.99 leaves one in 10,000 outside).

    Affine: two-sided, half of the rest is cut at each end, on a histogram of the values. Symmetric: -t..t,
    all of the rest is cut at magnitude t, on a histogram of the magnitudes. Both are equal to ONNX Runtime's
    `HistogramCollector(method="percentile")` with the same `bins` (2,048): the end is the left edge of the
    bin that the percentile falls in, so resolution is one bin. The result is cut to the observed extremes
    and includes 0. State: the histogram, whose bin width the first batch fixes.
    Per channel (not in ONNX Runtime): exact percentiles of the values, linear between neighbours; keeps the
    observed tensors until reset. Raises ConfigError unless 50 < percentile <= 100. Introduced in notebook 03.
    """

    histogram: NumpyHistogram | None

    def __init__(self, *args: Any, percentile: float = 99.99, bins: int = 2048, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 50 < percentile <= 100:
            raise ConfigError(f"percentile must be above 50 and at most 100, not {percentile}.")
        if bins < 2:
            raise ConfigError(f"bins must be 2 or more, not {bins}.")
        self.percentile, self.bins = percentile, bins

    def count(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Add one batch to the histogram."""
        counted = count_magnitudes if self.symmetric else count_values
        self.histogram = counted(self.histogram, x.cpu().numpy(), self.bins)

    def choose(self) -> tuple[Tensor, Tensor]:
        """The percentiles, cut to the observed extremes, zero included."""
        minimum, maximum = self.observed()
        if self.axis is not None:
            return self._choose_per_channel()
        low, high = self.thresholds()
        low, high = max(low, minimum.item()), min(high, maximum.item())
        return minimum.new_tensor(min(low, 0.0)), maximum.new_tensor(max(high, 0.0))

    def thresholds(self) -> tuple[float, float]:
        """The (low, high) bin edges at the percentile, before the cut to the observed extremes."""
        self.observed()
        assert self.histogram is not None
        counts, edges = self.histogram.counts, self.histogram.edges
        cumulative = np.cumsum(counts / counts.sum())
        if self.symmetric:
            end = float(edges[np.searchsorted(cumulative, self.percentile / 100.0)])
            return -end, end
        cut = (100.0 - self.percentile) / 200.0
        return (
            float(edges[np.searchsorted(cumulative, cut)]),
            float(edges[np.searchsorted(cumulative, 1.0 - cut)]),
        )

    def _choose_per_channel(self) -> tuple[Tensor, Tensor]:
        x = torch.cat(self.kept, 1).cpu().numpy()
        if self.symmetric:
            high = np.percentile(np.abs(x), self.percentile, axis=1)
            low = -high
        else:
            cut = (100.0 - self.percentile) / 2
            low, high = np.percentile(x, [cut, 100.0 - cut], axis=1)
        ends = [torch.as_tensor(end, dtype=torch.float32, device=self.kept[0].device) for end in (low, high)]
        return ends[0].clamp(max=0), ends[1].clamp(min=0)

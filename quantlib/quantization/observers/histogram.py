"""torch's HistogramObserver, bit for bit: a histogram of 2,048 bins and a greedy walk over its ends."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantlib.errors import ConfigError
from quantlib.quantization.observers.base import Observer

UPSAMPLE = 16
"""Every old bin is cut into this many slices before it is moved into a wider histogram."""
STEP = 1e-5
"""Share of the mass that the walk tries to drop at each step."""


def rebin(histogram: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Tensor:
    """The histogram over `old`, poured into as many bins over the wider `new`, slice by slice."""
    bins = histogram.numel()
    if old[0] == old[1]:  # all mass in one point
        return torch.histc(old[0], bins, min=new[0].item(), max=new[1].item()) * histogram.sum()
    slices = histogram.repeat_interleave(UPSAMPLE) / UPSAMPLE
    width = (old[1] - old[0]) / (bins * UPSAMPLE)
    midpoints = torch.linspace(old[0].item(), old[1].item(), bins * UPSAMPLE + 1, device=width.device)[:-1]
    edges = torch.linspace(new[0].item(), new[1].item(), bins + 1, device=width.device)
    place = torch.bucketize(midpoints + 0.5 * width, edges, right=True) - 1
    return torch.bincount(place.clamp(0, bins - 1), weights=slices, minlength=bins)


class HistogramObserver(Observer):
    """The range that torch.ao's `HistogramObserver` chooses, from the same histogram.

    Collects `bins` equal bins between the extremes; when these grow, the old histogram is re-binned. Then
    walks inwards from both ends, each time dropping the end that costs fewer bins for the next 1e-5 of the
    mass, and stops as soon as the modelled squared error rises. The walk is greedy and always models 8 bits:
    it can stop early and end worse than min-max (notebook 03). `histogram`: float32 (bins,).
    Raises ConfigError for fewer bins than one. Source: caffe2's norm minimization, as in torch 2.14.
    Introduced in notebook 03.
    """

    histogram: Tensor | None

    def __init__(self, *args: Any, bins: int = 2048, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if bins < 1:
            raise ConfigError(f"bins must be 1 or more, not {bins}.")
        self.bins = bins
        self.register_buffer("histogram", None, persistent=False)

    def observe(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Add one batch; re-bin what there is when the extremes grew."""
        old = (self.minimum, self.maximum)
        self.widen(low, high)
        new = self.observed()
        update = torch.histc(x, self.bins, min=new[0].item(), max=new[1].item())
        if self.histogram is None or old[0] is None or old[1] is None:
            self.histogram = update
        elif old == new:
            self.histogram = self.histogram + update
        else:
            self.histogram = (update + rebin(self.histogram, (old[0], old[1]), new)).float()

    def let_go(self) -> None:
        """Drop the histogram."""
        self.histogram = None

    def choose(self) -> tuple[Tensor, Tensor]:
        """The ends at which the greedy walk stops."""
        minimum, maximum = self.observed()
        if minimum == maximum:  # bins of no width: wherever the walk ends, the range is the same
            return minimum, maximum
        start, end = self._walk()
        width = (maximum - minimum) / self.bins
        return minimum + width * start, minimum + width * (end + 1)

    def _walk(self) -> tuple[int, int]:
        """First and last bin kept. Thresholds are rounded to float32, as torch compares them."""
        assert self.histogram is not None
        total = self.histogram.sum().item()
        cumulative = torch.cumsum(self.histogram, dim=0).tolist()
        alpha, beta, best = 0.0, 1.0, float("inf")
        start, end = 0, self.bins - 1
        while alpha < beta:
            left = bisect_left(cumulative, float(np.float32((alpha + STEP) * total)))
            right = bisect_right(cumulative, float(np.float32((beta - STEP) * total))) - 1
            left, right = max(start, min(left, end)), min(end, max(right, start))
            if left - start > end - right:
                alpha, candidate = alpha + STEP, (left, end)
            else:
                beta, candidate = beta - STEP, (start, right)
            if candidate == (start, end):
                continue
            error = self._modelled_error(*candidate)
            if error > best:
                break
            best, (start, end) = error, candidate
        return start, end

    def _modelled_error(self, start: int, end: int) -> float:
        """Sum over bins of density * integral of (x - cell centre)^2, for 256 cells over bins start..end."""
        assert self.histogram is not None
        minimum, maximum = self.observed()
        width = (maximum.item() - minimum.item()) / self.bins
        cell = width * (end - start + 1) / 256
        if cell == 0.0:
            return 0.0
        density = self.histogram / width
        begin = (torch.arange(self.bins, device=density.device) - start) * width
        finish = begin + width
        first = torch.div(begin, cell, rounding_mode="floor").clamp(0, 255)
        last = torch.div(finish, cell, rounding_mode="floor").clamp(0, 255)
        half = torch.tensor(cell / 2, device=density.device)
        # From the bin's begin to the end of its first cell; whole cells between; up to the bin's finish.
        error = _second_moment(begin - (first + 0.5) * cell, half, density)
        error += (last - first - 1) * _second_moment(-half, half, density)
        error += _second_moment(-half, finish - (last * cell + cell / 2), density)
        return error.sum().item()


def _second_moment(begin: Tensor, end: Tensor, density: Tensor) -> Tensor:
    """Integral of density * x^2 from begin to end."""
    return density * ((end * end * end - begin * begin * begin) / 3)

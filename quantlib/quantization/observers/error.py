"""The range with the least squared error, found by trying all of them on a histogram."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from quantlib.errors import ConfigError
from quantlib.quantization.affine import QParams
from quantlib.quantization.observers.base import KeepingObserver

BINS = 4096
"""At most this many bins; the observed range always fills more than half of them."""
SMALLEST_EXPONENT = -34
"""Bins narrower than 2**-34 are never needed: no scale is below 2**-23."""
SMALLEST_SHARE = 1 / 2048
"""Ranges below this share of the extreme are not tried."""
TAIL = 1 / 2
"""Values beyond this share of a batch's extremes are few, and decide where a range ends: all are counted."""
GROUP = 16
"""Values that are searched for tails together: more would save passes, and let more groups hold one."""
MARGIN = 1e-3
"""A range must promise to beat min-max by this share; below it the histogram cannot tell the two apart."""


class ExactHistogram:
    """Counts of values over bins [i * w, (i + 1) * w), w a power of two; exact zeros are counted apart.

    When the extremes outgrow `BINS` bins, w doubles and neighbours merge. Nothing is interpolated, so the
    counts are those of all data at once, whatever the batches and their order. counts: float64 (bins,),
    the first bin starts at `first * w`. Introduced in notebook 03.
    """

    def __init__(self, device: torch.device) -> None:
        self.exponent, self.first, self.zeros = SMALLEST_EXPONENT, 0, 0.0
        self.counts = torch.zeros(1, dtype=torch.float64, device=device)

    @property
    def width(self) -> float:
        """Width of a bin, in units of the data."""
        return 2.0**self.exponent

    def add(self, x: Tensor, low: float, high: float, weight: int = 1) -> None:
        """Count each value of the flat `x` as `weight` values; low..high covers everything seen so far."""
        self._cover(low, high)
        limit = torch.finfo(torch.float32).max
        start = self.first * self.width
        end = min((self.first + self.counts.numel()) * self.width, limit)
        # After a ReLU half the values are exact zeros, which every grid keeps. histc skips what lies below
        # its start, so starting at the smallest normal number leaves them out without another pass.
        start = start or torch.finfo(torch.float32).tiny
        # histc counts in float32: above 2**24 in one bin it would stop counting.
        for part in x.split(2**24):
            counted = torch.histc(part, self.counts.numel(), min=start, max=end).double()
            self.zeros += weight * self._exact_zeros(part, counted)
            self.counts += weight * counted

    def _exact_zeros(self, x: Tensor, counted: Tensor) -> float:
        """How many zeros `x` holds; moves them out of a two-sided `counted` where they stand out."""
        if self.first == 0:
            return x.numel() - float(counted.sum())
        here = -self.first
        if here >= counted.numel() or counted[here] <= 4 * counted[here - 1]:
            return 0.0
        zeros = min(float(x.numel() - torch.count_nonzero(x)), float(counted[here]))
        counted[here] -= zeros
        return zeros

    def _cover(self, low: float, high: float) -> None:
        """Merge and extend the bins until they cover low..high and 0."""
        low, high, exponent = min(low, 0.0), max(high, 0.0), self.exponent
        while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= BINS:
            exponent += 1
        first = math.floor(low / 2.0**exponent)
        bins = math.floor(high / 2.0**exponent) + 1 - first
        old = torch.arange(self.counts.numel(), device=self.counts.device) + self.first
        place = (old >> min(exponent - self.exponent, 62)) - first
        counts = torch.zeros(bins, dtype=torch.float64, device=self.counts.device)
        self.counts = counts.index_add_(0, place, self.counts)
        self.exponent, self.first = exponent, first


def expected_error(histogram: ExactHistogram, grids: QParams) -> Tensor:
    """Mean squared error of quantizing the histogram's data on each of n grids.

    A grid has levels v_0 < ... < v_K a scale apart and thresholds t_k half way between. Q(x) is the top level
    less one scale for every threshold above x; squared, averaged and telescoped that gives

        E[(x - Q(x))^2] = E[(x - v_K)^2] - 2 * scale * sum_k G(t_k),      G(t) = E[max(t - x, 0)]

    so one function G, made by two cumulative sums, prices every grid exactly, clipping included. The only
    assumption is that values spread evenly inside a bin (a spike elsewhere than at 0, such as the 6 of a
    ReLU6, is spread over one too). grids: scale, zero_point (n,); returns float64 (n,).
    Introduced in notebook 03.
    """
    width, counts = histogram.width, histogram.counts
    total = counts.sum() + histogram.zeros
    zero = counts.new_zeros(1)
    below = torch.cat([zero, counts.cumsum(0)])
    area = torch.cat([zero, (below[:-1] + counts / 2).cumsum(0)])
    scale, zero_point = grids.scale.double() / width, grids.zero_point.double()
    steps = torch.arange(grids.quant_min, grids.quant_max, device=counts.device) + 0.5
    position = (steps - zero_point[:, None]) * scale[:, None] - histogram.first
    index = position.clamp(0, counts.numel()).long()
    inside = (position - index).clamp_(min=0)
    gain = area[index] + inside * (below[index] + inside * torch.cat([counts, zero])[index] / 2)
    gain += histogram.zeros * (position + histogram.first).clamp_(min=0)
    top = (grids.quant_max - zero_point) * scale
    centres = torch.arange(counts.numel(), device=counts.device) + histogram.first + 0.5
    second = (counts * (centres.square() + 1 / 12)).sum()
    start = second - 2 * top * (counts * centres).sum() + top.square() * total
    return (start - 2 * scale * gain.sum(1)).clamp_(min=0) / total * width**2


def _is_tail(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Which values lie beyond a share `TAIL` of the extremes."""
    above = x > high * TAIL
    return above if low >= 0 else above.logical_or_(x < low * TAIL)


def tails(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The values of the flat `x` beyond a share `TAIL` of its extremes low..high, as float32, in any order.

    They are few, so most groups of `GROUP` values hold none; a maximum and a minimum over each group, which
    vector instructions take at the speed of memory, leave a few groups to be looked through.
    """
    whole = x.numel() // GROUP * GROUP
    groups = x[:whole].view(GROUP, -1)
    hit = groups.amax(0) > high * TAIL
    if low < 0:
        hit.logical_or_(groups.amin(0) < low * TAIL)
    # index_select copies several times as fast as groups[:, places].
    near = torch.cat([groups.index_select(1, hit.nonzero().flatten()).flatten(), x[whole:]]).float()
    return near[_is_tail(near, low, high)]


class MeanSquaredErrorObserver(KeepingObserver):
    """The range whose grid, at this observer's own bits, has the least mean squared error.

    Per tensor: `expected_error` on an exact histogram, for ends from 1/2048 of the observed extreme up to all
    of it, evenly spaced in ratio: first a coarse set (one end after a ReLU or when symmetric: 128 to 2,048
    ranges; both ends otherwise: all pairs of 32 to 256), then halving steps around the eight best until the
    ends move by less than 0.05 %. Min-max is among the ranges tried and is kept unless another is 0.1 %
    better. Of a batch of more than `sample` values the bulk is thinned to every k-th one, k prime to its size
    so that all channels and positions take part; the tails, beyond half of the extremes, are counted
    whole (None: count every value).
    Per channel (weights): clip ratios 1/`ratios` .. 1 tried on the values themselves, all channels at
    once; affine grids then move each end alone. That form keeps the observed tensors until reset.
    Raises ConfigError unless ratios and sample are 1 or more. Introduced in notebook 03.
    """

    takes_any_float = True

    histogram: ExactHistogram | None

    def __init__(self, *args: Any, ratios: int = 100, sample: int | None = 2**18, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if ratios < 1:
            raise ConfigError(f"ratios is the number of clip ratios to try, 1 or more; not {ratios}.")
        if sample is not None and sample < 1:
            raise ConfigError(
                f"sample is a number of values per batch, 1 or more, or None for all; not {sample}."
            )
        self.ratios, self.sample = ratios, sample

    def count(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Add one batch to the histogram."""
        self.histogram = self.histogram or ExactHistogram(x.device)
        least, most = (float(end) for end in self.observed())
        step = 1 if self.sample is None else -(-x.numel() // self.sample)
        while math.gcd(step, x.numel()) > 1:
            step += 1
        thinned = x[::step].float()
        if step > 1:
            # Thinned tails put the best range of a convolution's output up to 1 dB off.
            self.histogram.add(tails(x, low, high), least, most)
            thinned = thinned[~_is_tail(thinned, low, high)]
        self.histogram.add(thinned, least, most, weight=step)

    def choose(self) -> tuple[Tensor, Tensor]:
        """The range of least error."""
        minimum, maximum = self.observed()
        low, high = minimum.clamp(max=0), maximum.clamp(min=0)
        if self.axis is not None:
            return self._choose_per_channel(low, high)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        tied = self.symmetric or bool(low == 0) or bool(high == 0)
        shares, errors = self._search(low, high, tied)
        best = int(errors.argmin())
        all_of_it = shares.new_ones(1, 2)
        if errors[best] >= self._errors(low, high, all_of_it)[0] * (1 - MARGIN):
            return low, high
        return low * shares[best, 0], high * shares[best, 1]

    def _search(self, low: Tensor, high: Tensor, tied: bool) -> tuple[Tensor, Tensor]:
        """Shares of (low, high) tried, (n, 2), and their errors (n,); `tied` moves both ends together."""
        around = torch.tensor([-1.0, 0.0, 1.0], device=low.device)
        count = min(2048, 2 ** (15 - self.bits)) if tied else min(256, 2 ** (9 - self.bits // 2))
        step = math.log(SMALLEST_SHARE) / count
        logs = torch.arange(count, device=low.device) * step
        moves = torch.stack([around, around], 1) if tied else torch.cartesian_prod(around, around)
        logs = torch.stack([logs, logs], 1) if tied else torch.cartesian_prod(logs, logs)
        errors = self._errors(low, high, logs.exp())
        while abs(step) > 1 / 2048:
            step /= 2
            centres = logs[errors.argsort()[:8]]
            near = (centres[:, None] + step * moves).reshape(-1, 2).clamp(max=0).unique(dim=0)
            logs = torch.cat([logs, near])
            errors = torch.cat([errors, self._errors(low, high, near.exp())])
        return logs.exp(), errors

    def _errors(self, low: Tensor, high: Tensor, shares: Tensor) -> Tensor:
        """Expected error of the ranges low * shares[:, 0] .. high * shares[:, 1]."""
        assert self.histogram is not None
        # Pieces of 2**15 thresholds stay in the cache and below the size at which torch wakes its threads.
        parts = shares.split(2**15 // (self.quant_max - self.quant_min))
        grids = [self.grid(low * part[:, 0], high * part[:, 1]) for part in parts]
        return torch.cat([expected_error(self.histogram, grid) for grid in grids])

    def _choose_per_channel(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The search of `_best_clips`, a few channels at a time so that their values stay in the cache."""
        x = torch.cat(self.kept, 1)
        rows = max(1, 2**17 // x.shape[1])
        parts = zip(x.split(rows), low.split(rows), high.split(rows), strict=True)
        found = [self._best_clips(*part) for part in parts]
        return torch.cat([pair[0] for pair in found]), torch.cat([pair[1] for pair in found])

    def _best_clips(self, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Exact search over clip ratios, one result per channel of x (C, n); ties keep the wider range."""
        best = [low, high]
        least = self._channel_errors(x, low, high)
        moves = [(True, True)] if self.symmetric else [(True, True), (True, False), (False, True)]
        for move_low, move_high in moves:
            fixed = list(best)
            for ratio in torch.arange(self.ratios, 0, -1).div(self.ratios).tolist():
                trial = low * ratio if move_low else fixed[0], high * ratio if move_high else fixed[1]
                errors = self._channel_errors(x, *trial)
                better = errors < least
                least = torch.where(better, errors, least)
                best = [torch.where(better, new, old) for new, old in zip(trial, best, strict=True)]
        return best[0], best[1]

    def _channel_errors(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Squared error per channel of x (C, n) on the grids low..high (C,)."""
        grid = self.grid(low, high)
        scale, zero_point = grid.scale[:, None], grid.zero_point[:, None].float()
        # The values of `fake_quantize`, in place: several times as fast as the kernel, which also makes a
        # mask; torch.clamp with tensors for ends is the slow one of the ways to clip.
        levels = (x * (1.0 / scale)).round_()
        torch.maximum(levels, grid.quant_min - zero_point, out=levels)
        torch.minimum(levels, grid.quant_max - zero_point, out=levels)
        return levels.mul_(scale).sub_(x).square_().sum(1)

"""Rounding that keeps sums: errors of a kernel, and of a channel, take each other back. It needs no data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from quantlib.quantization.affine import QParams, fake_quantize
from quantlib.quantization.qconfig import check_name

Rounded = tuple[Tensor, QParams]
"""A weight on a grid, and that grid."""


def nearest(weight: Tensor, grid: QParams) -> Rounded:
    """Every weight at its nearest point of the grid."""
    return fake_quantize(weight, grid), grid


@torch.no_grad()
def balanced(weight: Tensor, grid: QParams) -> Rounded:
    """Round so that the errors of each kernel and of each channel sum up to less than a step; keep the gain.

        q = nearest(w / scale), then where |sum of q - w / scale| > 1/2: the weights that were rounded
            farthest that way go to their other neighbour, first in each kernel, then in each channel
        scale' = scale <w, w> / <w, scale q>     for each scale, so that <w, scale' q> = <w, w>

    What a layer reads is mostly positive (it comes from ReLUs) and alike in neighbouring pixels, so errors of
    one sign add up; so does the loss of all that is clipped, which the new scale gives back.
    weight: (out, in, height, width) or (out, in), float32; the grid may have a scale for each `out`. Sources:
    Guo et al. 2022 (SQuant) for the flips; the scale after Banner et al. 2019. Introduced in notebook 10.
    """
    scale, zero_point = grid.along(weight)
    ends = (grid.quant_min - zero_point).float(), (grid.quant_max - zero_point).float()
    levels = weight / scale
    chosen = levels.round().clamp(*ends)
    for axis in (2, 1):
        if weight.dim() > axis:
            rows = [each.expand_as(weight).flatten(axis) for each in (levels, chosen, *ends)]
            chosen = flip(*rows).view_as(weight)
    products = weight * chosen * scale, weight.square()
    kept, power = (each.sum() if grid.axis is None else each.flatten(1).sum(1) for each in products)
    gain = torch.where(kept > 0, power / kept.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    grid = replace(grid, scale=grid.scale * gain)
    return chosen * grid.along(weight)[0], grid


def flip(levels: Tensor, chosen: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Integers whose errors sum up to at most 1/2 along the last axis, where the ends of the grid let them.

    As few as possible change, those that cost least. Introduced in notebook 10.

    >>> flip(torch.tensor([0.45, 0.40, 0.30]), torch.zeros(3), torch.tensor(-8.0), torch.tensor(7.0)).tolist()
    [1.0, 0.0, 0.0]
    """
    error = chosen - levels
    total = error.sum(-1, keepdim=True)
    step = total.sign()
    can = (error * step > 0) & (chosen - step >= low) & (chosen - step <= high)
    rank = torch.where(can, error.abs(), -1.0).argsort(-1, descending=True).argsort(-1)
    return torch.where(can & (rank < total.abs().round()), chosen - step, chosen)


WEIGHT_ROUNDINGS: dict[str, Callable[[Tensor, QParams], Rounded]] = {"nearest": nearest, "balanced": balanced}
"""Ways to round a weight without looking at data. Introduced in notebook 10."""


def rounded(weight: Tensor, grid: QParams, rounding: str) -> Rounded:
    """A weight by one of WEIGHT_ROUNDINGS; ConfigError for another name."""
    check_name(rounding, WEIGHT_ROUNDINGS, "rounding")
    return WEIGHT_ROUNDINGS[rounding](weight.detach(), grid)

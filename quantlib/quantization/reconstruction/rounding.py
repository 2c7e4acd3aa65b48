"""Rounding that is learned: each weight goes up or down, and the data say which (AdaRound)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from quantlib.quantization.affine import QParams, quantize
from quantlib.quantization.observers import base
from quantlib.quantization.reconstruction.one_pass import dense, flat, one_pass, same_order

GAMMA, ZETA = -0.1, 1.1
"""The sigmoid is stretched to this range and clipped to 0..1, so that both ends can be reached."""


def rectified_sigmoid(logits: Tensor) -> Tensor:
    """h = clamp(sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0, 1). Source: Nagel et al. 2020. Notebook 10.

    Introduced in notebook 10.

    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return (torch.sigmoid(logits) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def logits_of(share: Tensor) -> Tensor:
    """The v with rectified_sigmoid(v) == share, for shares in 0..1. Introduced in notebook 10."""
    return -torch.log((ZETA - GAMMA) / (share - GAMMA) - 1)


@one_pass
def _levels(logits: Tensor, floor: Tensor, low: float, high: float) -> Tensor:
    """clamp(floor + h(v), low, high)."""
    return (floor + rectified_sigmoid(logits)).clamp(low, high)


@one_pass
def _slope(grad: Tensor, logits: Tensor, floor: Tensor, low: float, high: float) -> Tensor:
    """The gradient of the logits, given that of the levels."""
    sigmoid = torch.sigmoid(logits)
    # Beyond these two the stretched sigmoid is clipped; outside the grid the rounding changes nothing.
    moves = (sigmoid > -GAMMA / (ZETA - GAMMA)) & (sigmoid < (1 - GAMMA) / (ZETA - GAMMA))
    moves &= (floor >= low) & (floor < high)
    return torch.where(moves, grad * sigmoid * (1 - sigmoid) * (ZETA - GAMMA), 0.0)


class _Soft(torch.autograd.Function):
    """`_levels` with its gradient: in one dimension, so that one compiled loop serves every shape."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, floor: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(logits, floor)
        ctx.ends = low, high
        return _levels(flat(logits), flat(floor), low, high).as_strided(logits.shape, logits.stride())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        logits, floor = ctx.saved_tensors
        slope = _slope(flat(same_order(grads[0], logits)), flat(logits), flat(floor), *ctx.ends)
        return slope.as_strided(logits.shape, logits.stride()), None, None, None


@one_pass
def _undecided(logits: Tensor, beta: Tensor) -> Tensor:
    """sum of 1 - |2 h(v) - 1|**beta."""
    return (1 - (2 * rectified_sigmoid(logits) - 1).abs().pow(beta)).sum()


class SoftRounding(nn.Module):
    """A weight between its two neighbours on the grid, so that a gradient can choose one of them.

        w = scale * clamp(floor(w / scale) + h(v), quant_min - zero_point, quant_max - zero_point)

    It starts where h(v) is the fraction of w / scale: at the float weight itself. `learn_scale` trains the
    scale with it, one factor per scale, as exp(log_scale); the integers then stay those of the first scale.
    Sources: Nagel et al. 2020 (AdaRound); for the scale, Jeon et al. 2023 (Genie). Introduced in notebook 10.
    """

    floor: Tensor

    def __init__(self, weight: Tensor, grid: QParams, learn_scale: bool = False) -> None:
        super().__init__()
        self.grid = grid
        scale, zero_point = grid.along(weight)
        levels = dense(weight.detach()) / scale
        self.register_buffer("floor", levels.floor())
        self.ends = (grid.quant_min - zero_point).float(), (grid.quant_max - zero_point).float()
        self.bounds = float(self.ends[0].min()), float(self.ends[1].max())
        low = self.ends[0].flatten()
        self.apart = bool((low != low[0]).any())  # zero points differ by channel, and so do the ends
        self.logits = nn.Parameter(logits_of(levels - self.floor))
        self.log_scale = nn.Parameter(torch.zeros_like(scale), requires_grad=learn_scale)
        self.scale = scale

    def forward(self) -> Tensor:
        """The soft weight, float32, in the shape of the weight."""
        scale = self.scale * self.log_scale.exp() if self.log_scale.requires_grad else self.scale
        levels: Tensor = _Soft.apply(self.logits, self.floor, *self.bounds)
        return (levels.clamp(*self.ends) if self.apart else levels) * scale

    def penalty(self, beta: float) -> Tensor:
        """How open the weights are: sum of 1 - |2 h(v) - 1|**beta; a large beta minds only the middle."""
        return _undecided(base.flat(self.logits), torch.tensor(beta))

    @torch.no_grad()
    def decided(self) -> tuple[Tensor, QParams]:
        """The weight with every choice made, and its grid."""
        levels = torch.maximum(self.floor + (self.logits >= 0), self.ends[0])
        levels = torch.minimum(levels, self.ends[1])
        scale = self.scale * self.log_scale.exp()
        return levels * scale, replace(self.grid, scale=scale.reshape(self.grid.scale.shape))


def integers(weight: Tensor, grid: QParams) -> Tensor:
    """The integers of a weight that lies on its grid. Introduced in notebook 10."""
    return quantize(weight.detach(), grid)

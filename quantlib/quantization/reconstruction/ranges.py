"""Ranges of activations that are learned (LSQ), and activations that are sometimes left alone (QDrop)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantlib.quantization.affine import QParams, fake_quantize
from quantlib.quantization.reconstruction.one_pass import dense, flat, one_pass, same_order

Ends = tuple[float, float]
"""Lowest and highest integer of a grid, counted from its zero point."""
Drop = tuple[Tensor, int]
"""A random byte for each value, in the order of memory; where it is below the number, the value stays."""


@one_pass
def _rounded(x: Tensor, scale: Tensor, ends: Ends, drop: Drop | None) -> Tensor:
    """The values of `fake_quantize`, but those of `x` where it is dropped."""
    y = torch.round(x.float() * (1.0 / scale)).clamp(*ends) * scale
    if drop is not None:
        y = torch.where(drop[0].float() < drop[1], x.float(), y)
    return y.to(x.dtype)


@one_pass
def _slopes(grad: Tensor, x: Tensor, scale: Tensor, ends: Ends, drop: Drop | None) -> tuple[Tensor, Tensor]:
    """What `grad` becomes before the rounding, and the gradient of the scale."""
    exact = x.float() * (1.0 / scale)
    levels = torch.round(exact)
    passes = (levels >= ends[0]) & (levels <= ends[1])
    by_scale = levels.clamp(*ends) - torch.where(passes, exact, 0.0)
    if drop is not None:
        alone = drop[0].float() < drop[1]
        passes, by_scale = passes | alone, torch.where(alone, 0.0, by_scale)
    return torch.where(passes, grad, 0.0), (grad.float() * by_scale).sum()


@one_pass
def mixed(x: Tensor, other: Tensor, drop: Drop) -> Tensor:
    """`x`, but `other` where it is dropped; all three in the same order of memory. Notebook 10."""
    return torch.where(drop[0].float() < drop[1], other, x)


class _LearnedStep(torch.autograd.Function):
    """fake_quantize whose scale has a gradient as well, and which leaves alone what is dropped:

    d xq / d scale = (xq - x) / scale inside the grid, xq / scale at its ends, 0 where dropped
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, ends: Ends, drop: Drop | None) -> Tensor:
        x = dense(x)
        ctx.save_for_backward(x, scale)
        ctx.rest = ends, drop
        return _rounded(flat(x), scale, ends, drop).as_strided(x.shape, x.stride())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, scale = ctx.saved_tensors
        through, step = _slopes(flat(same_order(grads[0], x)), flat(x), scale, *ctx.rest)
        return through.as_strided(x.shape, x.stride()), step, None, None


class LearnedRange(nn.Module):
    """The grid of one activation, its scale trainable as exp(log_scale); the zero point stays.

    In train mode a share `drop` of the values passes unrounded, drawn anew at every call (QDrop); `rng` draws
    them. In eval mode every value is rounded. Sources: Esser et al. 2020 (LSQ), Wei et al. 2022 (QDrop).
    Introduced in notebook 10.
    """

    def __init__(self, grid: QParams, rng: np.random.Generator | None = None) -> None:
        super().__init__()
        self.first = grid
        self.ends = float(grid.quant_min - grid.zero_point), float(grid.quant_max - grid.zero_point)
        self.drop = 0.0
        self.rng = rng or np.random.default_rng(0)
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.eval()

    @property
    def grid(self) -> QParams:
        """The grid as it is now."""
        first = self.first
        scale = first.scale * self.log_scale.detach().exp()
        return QParams(scale, first.zero_point, first.quant_min, first.quant_max)

    def forward(self, x: Tensor) -> Tensor:
        """Round to the grid, but for what is dropped."""
        if not self.training:
            return fake_quantize(x, self.grid)
        scale = self.first.scale * self.log_scale.exp()
        drop = dropped(x, self.drop, self.rng) if self.drop else None
        y: Tensor = _LearnedStep.apply(x, scale, self.ends, drop)
        return y


def dropped(x: Tensor, share: float, rng: np.random.Generator) -> Drop:
    """Draws that leave alone about `share` of `x` (in steps of 1/256).

    numpy's bytes: ten times as fast as torch's uniform numbers, and the same on every machine.
    Introduced in notebook 10.
    """
    drawn = torch.frombuffer(bytearray(rng.bytes(x.numel())), dtype=torch.uint8)
    return drawn.to(x.device), round(256 * share)

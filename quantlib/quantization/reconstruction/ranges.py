"""Ranges of activations that are learned (LSQ), and activations that are sometimes left alone (QDrop)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantlib.quantization.affine import QParams, fake_quantize


class _LearnedStep(torch.autograd.Function):
    """fake_quantize whose scale has a gradient as well, and which leaves the values of `spared` alone:

    d xq / d scale = (xq - x) / scale inside the grid, xq / scale at its ends, 0 where spared
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, grid: QParams, spared: Tensor | None) -> Tensor:
        y = fake_quantize(x, QParams(scale.detach(), grid.zero_point, grid.quant_min, grid.quant_max))
        if spared is not None:
            y = torch.where(spared, x, y)
        ctx.save_for_backward(x, y, scale, spared)
        ctx.grid = grid
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, y, scale, spared = ctx.saved_tensors
        low = float((ctx.grid.quant_min - ctx.grid.zero_point - 0.5) * scale)
        high = float((ctx.grid.quant_max - ctx.grid.zero_point + 0.5) * scale)
        passes = (x >= low) & (x <= high)
        if spared is not None:
            passes |= spared
        through = grads[0] * passes
        step = None
        if ctx.needs_input_grad[1]:
            step = ((grads[0] * y).sum() - (through * x).sum()) / scale
        return through, step, None, None


class LearnedRange(nn.Module):
    """The grid of one activation, its scale trainable as exp(log_scale); the zero point stays.

    In train mode a share `drop` of the values passes unrounded, drawn anew at every call (QDrop); `rng` draws
    them. In eval mode every value is rounded. Sources: Esser et al. 2020 (LSQ), Wei et al. 2022 (QDrop).
    Introduced in notebook 10.
    """

    def __init__(self, grid: QParams, rng: np.random.Generator | None = None) -> None:
        super().__init__()
        self.first = grid
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
        left_alone = spared(x, self.drop, self.rng) if self.drop else None
        y: Tensor = _LearnedStep.apply(x, scale, self.first, left_alone)
        return y


def spared(x: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """A mask like `x`, True for about `share` of it (in steps of 1/256).

    numpy's bytes: ten times as fast as torch's uniform numbers, and the same on every machine.
    Introduced in notebook 10.
    """
    drawn = torch.from_numpy(np.frombuffer(rng.bytes(x.numel()), np.uint8) < round(256 * share))
    # In the order of x's memory: a mask of another layout makes `where` several times as slow.
    dense = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return drawn.as_strided(x.shape, x.stride()) if dense else drawn.view(x.shape)

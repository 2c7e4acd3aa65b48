"""The observer that has made up its mind: a grid that was learned, not observed."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.errors import ConfigError
from quantlib.quantization.affine import QParams
from quantlib.quantization.observers.base import Observer


class FixedObserver(Observer):
    """Stands where an observer stood and always answers with `grid`; what it is shown changes nothing.

    `like`: the observer whose bits and symmetry the grid has. `with_bits` raises ConfigError, because a
    learned grid says nothing about another width. Introduced in notebook 10.
    """

    per_channel_ready = True

    def __init__(self, grid: QParams, like: Observer) -> None:
        super().__init__(like.bits, like.signed, like.symmetric, like.narrow_range, like.axis)
        self.learned = grid

    def move(self, device: torch.device) -> None:
        """Take the grid along."""
        self.learned = self.learned.to(device)

    def forward(self, x: Tensor) -> Tensor:
        """Hand `x` on."""
        return x

    def range(self) -> tuple[Tensor, Tensor]:
        """The values of the grid's two ends."""
        grid = self.learned
        low, high = grid.quant_min - grid.zero_point, grid.quant_max - grid.zero_point
        return low * grid.scale, high * grid.scale

    def qparams(self) -> QParams:
        """The grid that was given."""
        return self.learned

    def with_bits(self, bits: int) -> Observer:
        """Raise ConfigError for another width than its own."""
        if bits != self.bits:
            raise ConfigError(
                f"This grid was learned for {self.bits} bits; reconstruct again to have one for {bits}."
            )
        return self

"""Observers that keep two numbers: the extremes, or a moving average of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from quantlib.errors import ConfigError
from quantlib.quantization.observers.base import Observer


class MinMaxObserver(Observer):
    """The range is everything ever seen: min over batches of min(x), max over batches of max(x).

    Nothing is clipped, and one outlier sets the step for all. Bit-equal to torch.ao's `MinMaxObserver` and
    `PerChannelMinMaxObserver`. Introduced in notebook 02.
    """

    per_channel_ready = True
    takes_any_float = True


class MovingAverageObserver(Observer):
    """The range is an exponential average of batch extremes: min += momentum * (min(x) - min).

    The first batch sets it. Bit-equal to torch.ao's `MovingAverageMinMaxObserver` and its per-channel form.
    Raises ConfigError unless 0 < momentum <= 1. Introduced in notebook 03.
    """

    per_channel_ready = True
    takes_any_float = True

    def __init__(self, *args: Any, momentum: float = 0.01, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 < momentum <= 1:
            raise ConfigError(f"momentum must be above 0 and at most 1, not {momentum}.")
        self.momentum = momentum

    def observe(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Move the extremes towards those of one batch."""
        if self.minimum is None or self.maximum is None:
            self.minimum, self.maximum = low, high
        else:
            self.minimum = self.minimum + self.momentum * (low - self.minimum)
            self.maximum = self.maximum + self.momentum * (high - self.maximum)

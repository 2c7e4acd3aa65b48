"""The debug observer, and the observer that does nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from quantlib.errors import ConfigError, NotCalibratedError
from quantlib.quantization.affine import QParams
from quantlib.quantization.observers.base import Observer
from quantlib.quantization.observers.minmax import MinMaxObserver


class RecordingObserver(MinMaxObserver):
    """The debug observer: min-max, and a copy of what passed in `recorded`.

    Keeps detached copies of the first `limit` tensors (all when None: mind the memory); the range still
    covers every tensor seen. Raises ConfigError when `limit` is negative. Introduced in notebook 03.
    """

    def __init__(self, *args: Any, limit: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if limit is not None and limit < 0:
            raise ConfigError(f"limit is a number of tensors, 0 or more, or None for all; not {limit}.")
        self.limit = limit
        self.recorded: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, keep a copy, hand it on unchanged."""
        super().forward(x)
        if self.limit is None or len(self.recorded) < self.limit:
            self.recorded.append(x.detach().clone())
        return x

    def reset(self) -> None:
        """Forget everything observed and recorded."""
        super().reset()
        self.recorded = []


class PlaceholderObserver(Observer):
    """Observes nothing and carries the configuration (bits, signed, symmetric, ...) for a later pass.

    `range()` and `qparams()` raise NotCalibratedError. Introduced in notebook 03.
    """

    per_channel_ready = True

    def forward(self, x: Tensor) -> Tensor:
        """Hand `x` on unseen."""
        return x

    def range(self) -> tuple[Tensor, Tensor]:
        """Raise NotCalibratedError: there is none."""
        raise NotCalibratedError(
            "A placeholder observes nothing and has no range; give this layer an observer such as minmax."
        )

    def qparams(self) -> QParams:
        """Raise NotCalibratedError: there are none."""
        self.range()
        raise AssertionError("range() always raises")

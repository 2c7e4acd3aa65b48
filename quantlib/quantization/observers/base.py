"""What every observer shares: a check of the data, the running range, and the step from range to grid."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlib.errors import ConfigError, NonFiniteError, NotCalibratedError
from quantlib.quantization.affine import QParams, qparams_from_range, quant_range


def flat(x: Tensor) -> Tensor:
    """All values of `x` in memory order: a view for channels-last tensors, where `x.flatten()` would copy."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return x.permute(order).reshape(-1)


def by_channel(x: Tensor, axis: int) -> Tensor:
    """`x` as (channels, values per channel)."""
    return x.movedim(axis, 0).flatten(1)


class Observer(nn.Module):
    """Watches tensors pass, then says which range their integer grid should cover.

    `forward(x)` observes `x` (detached, as float32) and returns it unchanged; `range()` is the chosen
    (minimum, maximum), shape () or, with `axis`, (C,); `qparams()` is the grid for it; `reset()` forgets.
    `minimum` and `maximum` hold the running extremes, None before the first tensor.
    Raises NonFiniteError on NaN, infinity or a width beyond float32, ConfigError on an empty or integer
    tensor or a changed number of channels, NotCalibratedError when asked before any tensor came.
    Introduced in notebook 02.
    """

    per_channel_ready: ClassVar[bool] = False
    takes_any_float: ClassVar[bool] = False
    """Whether `observe` does without a float32 copy of a bfloat16 tensor, which costs as much as a layer."""
    minimum: Tensor | None
    maximum: Tensor | None

    def __init__(
        self,
        bits: int = 8,
        signed: bool = False,
        symmetric: bool = False,
        narrow_range: bool = False,
        axis: int | None = None,
    ) -> None:
        super().__init__()
        self.quant_min, self.quant_max = quant_range(bits, signed, narrow_range)
        if axis is not None and not self.per_channel_ready:
            raise ConfigError(
                f"{type(self).__name__} works per tensor only; for per-channel ranges use the observer "
                "minmax, moving_average, percentile or mse."
            )
        self.bits, self.signed, self.symmetric = bits, signed, symmetric
        self.narrow_range, self.axis = narrow_range, axis
        # Not persistent: a calibrated model is saved as its grids, not as its observers.
        self.register_buffer("minimum", None, persistent=False)
        self.register_buffer("maximum", None, persistent=False)
        self._chosen: tuple[Tensor, Tensor] | None = None
        self.settled = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Observer:
        """To another device, with what is held beside the buffers."""
        self.move(fn(torch.zeros(())).device)
        return super()._apply(fn, recurse)  # type: ignore[return-value]

    def move(self, device: torch.device) -> None:
        """Take along what is no buffer."""
        if self._chosen is not None:
            self._chosen = self._chosen[0].to(device), self._chosen[1].to(device)

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x` and hand it on unchanged."""
        if x.numel() == 0:
            raise ConfigError(f"A tensor of shape {tuple(x.shape)} is empty; pass some values.")
        if not x.is_floating_point():
            raise ConfigError(f"Observers need floating-point tensors, not {x.dtype}.")
        if self.axis is not None and not (x.dim() >= 2 and -x.dim() <= self.axis < x.dim()):
            raise ConfigError(
                f"A tensor of shape {tuple(x.shape)} has no channels on axis {self.axis}; take axis=None."
            )
        data = x.detach()
        data = flat(data) if self.axis is None else by_channel(data, self.axis)
        low, high = (end.float() for end in torch.aminmax(data, dim=None if self.axis is None else 1))
        # NaN and infinity survive both aminmax and the difference: this check needs no pass of its own.
        if not bool(torch.isfinite(high - low).all()):
            raise NonFiniteError(
                "The observed tensor holds NaN or infinity (or spans more than float32 can hold); "
                "check the weights and the input images before calibrating."
            )
        if self.minimum is not None and self.minimum.shape != low.shape:
            raise ConfigError(
                f"This observer has seen {self.minimum.numel()} channels and now gets {low.numel()}; "
                "call reset() before observing another layer."
            )
        if self.settled:  # and keeps it: what it chose from is gone
            raise ConfigError("This observer has settled on its range; reset() it to observe anew.")
        self._chosen = None
        self.observe(data if self.takes_any_float else data.float(), low, high)
        return x

    def observe(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Take in one batch: `x` flat, or (C, n) with `axis`; `low` and `high` are its extremes."""
        self.widen(low, high)

    def widen(self, low: Tensor, high: Tensor) -> None:
        """Let the running extremes cover low..high."""
        if self.minimum is None or self.maximum is None:
            self.minimum, self.maximum = low, high
        else:
            self.minimum, self.maximum = torch.minimum(self.minimum, low), torch.maximum(self.maximum, high)

    def observed(self) -> tuple[Tensor, Tensor]:
        """The running (minimum, maximum)."""
        if self.minimum is None or self.maximum is None:
            raise NotCalibratedError(
                f"{type(self).__name__} has seen no data yet; run calibrate(prepared, batches) first."
            )
        return self.minimum, self.maximum

    def range(self) -> tuple[Tensor, Tensor]:
        """The chosen (minimum, maximum), float32, shape () or (C,); searched once per new data."""
        self.observed()
        if self._chosen is None:
            self._chosen = self.choose()
        return self._chosen

    def choose(self) -> tuple[Tensor, Tensor]:
        """The range to quantize, from what was observed; by default all of it."""
        return self.observed()

    def grid(self, low: Tensor, high: Tensor, bits: int | None = None) -> QParams:
        """The grid of this observer's symmetry, on its bits or on `bits`, over low..high.

        A vector of ranges gives a vector of grids.
        """
        return qparams_from_range(
            low,
            high,
            bits=self.bits if bits is None else bits,
            signed=self.signed,
            symmetric=self.symmetric,
            narrow_range=self.narrow_range,
            axis=self.axis if self.axis is not None or low.dim() == 0 else 0,
        )

    def qparams(self) -> QParams:
        """The grid for `range()`."""
        return self.grid(*self.range())

    def with_bits(self, bits: int) -> Observer:
        """A copy for another number of bits that has observed the same: one calibration serves them all."""
        if self.settled and bits != self.bits:
            raise ConfigError("This observer has settled on its range; reset() it to observe anew.")
        other = copy.deepcopy(self)
        other.quant_min, other.quant_max = quant_range(bits, self.signed, self.narrow_range)
        other.bits, other._chosen = bits, self._chosen if self.settled else None
        return other

    def settle(self) -> Observer:
        """Choose the range now, and let go of what only the choice needed; nothing can be added after it."""
        self.range()
        self.let_go()
        self.settled = True
        return self

    def reset(self) -> None:
        """Forget everything observed."""
        self.let_go()
        self.minimum, self.maximum, self._chosen, self.settled = None, None, None, False

    def let_go(self) -> None:
        """Drop what only the choice of a range needs."""

    def extra_repr(self) -> str:
        """Bits, integers, symmetry and axis."""
        kind = "symmetric" if self.symmetric else "affine"
        where = "per tensor" if self.axis is None else f"per channel on axis {self.axis}"
        return f"bits={self.bits}, {self.quant_min}..{self.quant_max}, {kind}, {where}"


class KeepingObserver(Observer):
    """An observer that summarizes a whole tensor by `count`, and with `axis` keeps the values themselves."""

    per_channel_ready = True

    histogram: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.histogram = None
        self.kept: list[Tensor] = []

    def move(self, device: torch.device) -> None:
        """Take along what was counted or kept."""
        super().move(device)
        self.kept = [part.to(device) for part in self.kept]
        if isinstance(getattr(self.histogram, "counts", None), Tensor):
            self.histogram.counts = self.histogram.counts.to(device)

    def observe(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Count one batch; with `axis`, keep it."""
        self.widen(low, high)
        if self.axis is None:
            self.count(x, low, high)
        else:
            self.kept.append(x.float().clone())

    def count(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Add the flat tensor `x`, with extremes `low` and `high`, to the summary."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Drop the histogram and the values that were kept."""
        self.histogram, self.kept = None, []

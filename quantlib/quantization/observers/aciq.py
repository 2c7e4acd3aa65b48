"""ACIQ: fit a bell curve to the data and clip where its expected squared error is least."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from quantlib.errors import ConfigError
from quantlib.quantization.observers.base import Observer

DISTRIBUTIONS = ("laplace", "gauss")


def optimal_clip(distribution: str, bits: int, one_sided: bool = False) -> float:
    """Clipping point that minimises the expected squared error, in units of b (Laplace) or sigma (Gauss).

    Two-sided, for 2**bits steps over -a..a, with u = a / b or a / sigma:

        error(a) = a^2 / (3 * 4^bits) + 2 * integral_a^inf (x - a)^2 p(x) dx
        Laplace: stationary where u * e^u = 3 * 4^bits
        Gauss:   stationary where u = 6 * 4^bits * (pdf(u) - u * tail(u))

    One-sided, for data after a ReLU: half the curve, 2**bits steps over 0..a. The step is half as long, so
    the condition is that of one more bit. Solved by bisection.
    Raises ConfigError on an unknown distribution. Source: Banner et al., "Post training 4-bit quantization
    of convolutional networks for rapid-deployment" (2019), which prints 3.86 at 3 bits where 3.90 solves
    its own equation. Introduced in notebook 03.

    >>> [round(optimal_clip("laplace", bits), 2) for bits in (2, 3, 4, 8)]
    [2.83, 3.9, 5.03, 9.9]
    """
    _check(distribution)
    steps_squared = 4.0 ** (bits + int(one_sided))
    low, high = 0.0, 60.0
    for _ in range(100):
        u = (low + high) / 2
        if distribution == "laplace":
            too_small = u * math.exp(u) < 3 * steps_squared
        else:
            pdf = math.exp(-u * u / 2) / math.sqrt(2 * math.pi)
            too_small = u < 6 * steps_squared * (pdf - u * math.erfc(u / math.sqrt(2)) / 2)
        low, high = (u, high) if too_small else (low, u)
    return (low + high) / 2


def _check(distribution: str) -> None:
    if distribution not in DISTRIBUTIONS:
        raise ConfigError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}; not {distribution!r}.")


class AciqObserver(Observer):
    """The range that is optimal if the data follow a Laplace or Gauss distribution: centre +- u * width.

        Laplace: width b = mean |x - mean|; Gauss: width sigma = standard deviation; u from `optimal_clip`
        one-sided (nothing below 0 seen, a ReLU before): 0 .. u * width, where width is mean(x) or
        root mean square of the positive values alone, taken as one half of a zero-centred curve
        symmetric scheme: the centre is 0

    The result is cut to the observed extremes, which clipping never needs to exceed. Over several batches,
    b is the average of each batch's deviation from its own mean. Per tensor only.
    Raises ConfigError on an unknown distribution. Introduced in notebook 03.
    """

    def __init__(self, *args: Any, distribution: str = "laplace", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check(distribution)
        self.distribution = distribution
        self._forget()

    @property
    def clip(self) -> float:
        """Half the range of two-sided data, in widths of the curve."""
        return optimal_clip(self.distribution, self.bits)

    @property
    def clip_one_sided(self) -> float:
        """The range of one-sided data, in widths of the curve."""
        return optimal_clip(self.distribution, self.bits, one_sided=True)

    def _forget(self) -> None:
        self.count = self.nonzero = 0
        self.sum = self.absolute = self.deviation = self.square = 0.0

    def reset(self) -> None:
        """Forget everything observed."""
        super().reset()
        self._forget()

    def observe(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Add the moments of one batch."""
        self.widen(low, high)
        total = float(x.sum())
        self.count += x.numel()
        self.nonzero += int(torch.count_nonzero(x))
        self.sum += total
        if self.distribution == "laplace":
            self.absolute += total if low >= 0 else float(x.abs().sum())
            self.deviation += float((x - total / x.numel()).abs_().sum())
        else:
            # Divided by the extreme first: the square of a large float32 leaves its range.
            extreme = float(torch.maximum(-low, high)) or 1.0
            self.square += float((x / extreme).square_().sum()) * extreme**2

    def choose(self) -> tuple[Tensor, Tensor]:
        """Centre and width of the curve, times the optimal clip, cut to the observed extremes."""
        minimum, maximum = self.observed()
        half = float(minimum) >= 0
        centre = 0.0 if half or self.symmetric else self.sum / self.count
        reach = self._width(half, centre) * (
            self.clip_one_sided if half and not self.symmetric else self.clip
        )
        low = 0.0 if half else max(centre - reach, float(minimum))
        high = min(centre + reach, float(maximum))
        return minimum.new_tensor(min(low, 0.0)), maximum.new_tensor(max(high, 0.0))

    def _width(self, half: bool, centre: float) -> float:
        """Width of the curve: b or sigma."""
        count = max(self.nonzero, 1) if half else self.count
        if self.distribution == "laplace":
            return (self.absolute if half or self.symmetric else self.deviation) / count
        return math.sqrt(max(self.square / count - centre * centre, 0.0))

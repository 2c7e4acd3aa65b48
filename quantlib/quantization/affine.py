"""Affine quantization: a float number x is stored as an integer q with x ~ (q - zero_point) * scale.

Everything is float32 and follows torch's kernels bit for bit: the rounding is half to even, x is multiplied
by the float32 reciprocal of the scale (not divided by it), and the zero point is added after rounding.
ONNX Runtime divides instead; about one value in 6,000 then lands on the neighbouring integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from quantlib.errors import ConfigError, NonFiniteError

EPS: float = torch.finfo(torch.float32).eps
"""The floor under every scale (1.1920929e-07), so that an all-zero tensor still has a usable one."""


def quant_range(bits: int, signed: bool, narrow_range: bool = False) -> tuple[int, int]:
    """Smallest and largest integer of a grid.

    Signed: -2**(bits-1) .. 2**(bits-1)-1; unsigned: 0 .. 2**bits-1. `narrow_range` gives up the lowest
    integer, which makes the signed grid symmetric around 0 and the unsigned one symmetric around 2**(bits-1).
    Raises ConfigError unless 2 <= bits <= 8. Introduced in notebook 05.

    >>> quant_range(8, signed=True), quant_range(8, signed=True, narrow_range=True), quant_range(4, False)
    ((-128, 127), (-127, 127), (0, 15))
    """
    if isinstance(bits, bool) or not isinstance(bits, Integral) or not 2 <= bits <= 8:
        raise ConfigError(f"bits must be a whole number from 2 to 8, not {bits!r}.")
    bits = int(bits)  # widths come out of tables, as numpy's integers
    low = -(2 ** (bits - 1)) if signed else 0
    return low + int(narrow_range), low + 2**bits - 1


@dataclass(frozen=True, eq=False)
class QParams:
    """The grid of one tensor: scale and zero point, of shape () per tensor or (C,) per channel on `axis`.

    scale: float32, > 0, in units of the tensor; zero_point: int32, inside quant_min..quant_max. Neither is
    checked here: a look at each would wait for a GPU; `qparams_from_range` makes them so.
    Raises ConfigError when the shapes disagree with `axis`. Introduced in notebook 02.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    axis: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", torch.as_tensor(self.scale, dtype=torch.float32))
        object.__setattr__(self, "zero_point", torch.as_tensor(self.zero_point, dtype=torch.int32))
        if self.scale.shape != self.zero_point.shape or self.scale.dim() != (self.axis is not None):
            raise ConfigError(
                f"scale {tuple(self.scale.shape)} and zero_point {tuple(self.zero_point.shape)} must both "
                "have shape () when axis is None, and shape (channels,) otherwise."
            )

    @property
    def bits(self) -> int:
        """Width of the integers; a narrow range counts as the full width."""
        return (self.quant_max - self.quant_min).bit_length()

    @property
    def dtype(self) -> torch.dtype:
        """uint8 when quant_min >= 0, int8 otherwise; fewer than 8 bits use part of the same byte."""
        return torch.uint8 if self.quant_min >= 0 else torch.int8

    def to(self, device: torch.device | str) -> QParams:
        """The same grid on another device."""
        return QParams(
            self.scale.to(device), self.zero_point.to(device), self.quant_min, self.quant_max, self.axis
        )

    def along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, zero_point), reshaped so that they broadcast against `x`."""
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)


def qparams_from_range(
    minimum: Tensor | float,
    maximum: Tensor | float,
    *,
    bits: int = 8,
    signed: bool = False,
    symmetric: bool = False,
    narrow_range: bool = False,
    axis: int | None = None,
    eps: float = EPS,
) -> QParams:
    """Scale and zero point of the grid that covers minimum..maximum (and always zero).

        mn = min(minimum, 0); mx = max(maximum, 0); steps = quant_max - quant_min
        symmetric: scale = max(-mn, mx) / (steps / 2)   zero_point = 0 (signed) or 2**(bits-1) (unsigned)
        affine:    scale = (mx - mn) / steps            zero_point = clamp(quant_min - rint(mn / scale))
        and scale >= eps

    A symmetric int8 grid over -128..127 divides by 127.5: the largest magnitude falls half way between two
    integers, and is clipped to 127 or goes to -127 or -128 by the last bit of the scale. With `narrow_range`
    it divides by 127 and nothing is clipped (notebook 05).
    minimum, maximum: shape () or, with `axis`, (C,). Bit-equal to torch.ao's `_calculate_qparams`, except
    that below 8 bits torch puts a symmetric unsigned zero point at 2**(bits-1) - 1.
    Raises NonFiniteError on NaN or infinity (also when the range overflows float32), ConfigError when
    minimum > maximum. Introduced in notebook 02.

    >>> qparams_from_range(-1.0, 3.0, bits=2).zero_point.item()
    1
    """
    quant_min, quant_max = quant_range(bits, signed, narrow_range)
    low, high = _checked_range(minimum, maximum)
    steps = float(quant_max - quant_min)
    if symmetric:
        scale = (torch.maximum(-low, high) / (steps / 2)).clamp(min=eps)
        zero_point = torch.full_like(scale, 0 if signed else 2 ** (bits - 1))
    else:
        scale = ((high - low) / steps).clamp(min=eps)
        zero_point = (quant_min - torch.round(low / scale)).clamp(quant_min, quant_max)
    if not bool(torch.isfinite(scale).all()):
        raise NonFiniteError("The range is too wide for float32; rescale the tensor or clip it first.")
    return QParams(scale, zero_point.to(torch.int32), quant_min, quant_max, axis)


def _checked_range(minimum: Tensor | float, maximum: Tensor | float) -> tuple[Tensor, Tensor]:
    """Both ends as float32, zero included."""
    low = torch.as_tensor(minimum, dtype=torch.float32)
    high = torch.as_tensor(maximum, dtype=torch.float32)
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise NonFiniteError("A range must be finite; look for NaN or infinity in the tensor it came from.")
    if bool((low > high).any()):
        raise ConfigError("A range needs minimum <= maximum; swap the two.")
    return low.clamp(max=0.0), high.clamp(min=0.0)


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Integers of `x`: q = clamp(rint(x * (1 / scale)) + zero_point, quant_min, quant_max).

    x: float, any shape; returns uint8 or int8 (`qparams.dtype`), same shape. NaN has no integer:
    check before. Raises ConfigError when `x` is not floating point. Introduced in notebook 02.

    >>> quantize(torch.tensor([-9.0, 0.0, 0.4, 3.0]), qparams_from_range(-1.0, 3.0, bits=2)).tolist()
    [0, 1, 1, 3]
    """
    if not x.is_floating_point():
        raise ConfigError(f"quantize needs floating-point values, not {x.dtype}.")
    scale, zero_point = qparams.along(x)
    q = torch.round(x.float() * (1.0 / scale)) + zero_point
    return q.clamp(qparams.quant_min, qparams.quant_max).to(qparams.dtype)


def dequantize(q: Tensor, qparams: QParams) -> Tensor:
    """Values of integers: x = (q - zero_point) * scale, float32, same shape. Introduced in notebook 02.

    >>> dequantize(torch.tensor([0, 1, 3]), qparams_from_range(-1.0, 3.0, bits=2)).tolist()[1]
    0.0
    """
    scale, zero_point = qparams.along(q)
    return (q.to(torch.int32) - zero_point).float() * scale


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """dequantize(quantize(x)) in one pass, with the straight-through gradient.

    The gradient is 1 where quant_min <= rint(x / scale) + zero_point <= quant_max and 0 elsewhere.
    torch's own kernel: equal to `fake_quantize_by_formula` bit for bit as long as |x| < 2**62 * scale
    (beyond that the per-channel kernel overflows its int64). Introduced in notebook 02.
    """
    low, high = qparams.quant_min, qparams.quant_max
    if qparams.axis is None:
        return torch.fake_quantize_per_tensor_affine(x, qparams.scale, qparams.zero_point, low, high)
    axis = qparams.axis % x.dim()
    return torch.fake_quantize_per_channel_affine(x, qparams.scale, qparams.zero_point, axis, low, high)


def fake_quantize_by_formula(x: Tensor, qparams: QParams) -> Tensor:
    """`fake_quantize` spelled out: the readable reference that the tests hold the kernel to."""
    return dequantize(quantize(x, qparams), qparams)

"""Requantization: an int32 accumulator becomes an integer of the output's grid, by one of three roundings.

The scales of input, weight and output meet in one multiplier M = s_in * s_weight / s_out, and the answer is
round(acc * M) + zero_point. The engines differ in how they round; `ROUNDINGS` names three of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quantlib.quantization.kernels import PIECE, quantize_uint8
from quantlib.quantization.qconfig import check_name

ROUNDINGS = ("float", "gemmlowp", "single_rounding")
"""float32 product and half to even (fbgemm, MLAS), TFLite's two roundings, TFLite's one rounding."""

INT32 = torch.iinfo(torch.int32)
"""The limits of an accumulator."""


def float_multiplier(
    scale_in: Tensor | float, scale_weight: Tensor | float, scale_out: Tensor | float
) -> Tensor:
    """The float32 multiplier M = f32(f32(s_in * s_weight) / s_out), as fbgemm and MLAS make it.

    Shape (out,) for a scale per output channel, () otherwise. Introduced in notebook 08.
    """
    single, weight, out = (
        torch.as_tensor(scale, dtype=torch.float32) for scale in (scale_in, scale_weight, scale_out)
    )
    return single * weight / out


def quantize_multiplier(m: Tensor | float) -> tuple[Tensor, Tensor]:
    """M as a 31-bit fraction and a power of two: M ~ m0 * 2**(exponent - 31).

        f, exponent = frexp(M);  m0 = round_half_away(f * 2**31);  m0 == 2**31: m0 /= 2, exponent += 1

    m: positive, of any shape; returns m0, int64 in [2**30, 2**31), and exponent, int64, of that shape.
    At the ends TFLite's rule holds: below 2**-32 m0 is 0, above 2**30 it is the largest there is.
    Source: TFLite's QuantizeMultiplier. Introduced in notebook 08.

    >>> [part.item() for part in quantize_multiplier(2**-6)]
    [1073741824, -5]
    """
    # A Python number in double, as TFLite has it: by way of float32 it would lose 29 bits first.
    fraction, exponent = torch.frexp(torch.as_tensor(m, dtype=torch.float64))
    m0, exponent = torch.floor(fraction * 2**31 + 0.5).long(), exponent.long()
    carry = m0 == 2**31
    m0, exponent = torch.where(carry, 2**30, m0), exponent + carry.long()
    m0 = torch.where(exponent < -31, 0, torch.where(exponent > 30, INT32.max, m0))
    return m0, exponent.clamp(-31, 30)


def rescale(x: Tensor, m: Tensor | float, rounding: str) -> Tensor:
    """round(x * M) as int32, by one of ROUNDINGS, saturated.

        float:            rint(f32(x) * f32(M))
        gemmlowp:         RoundingDivideByPOT(SaturatingRoundingDoublingHighMul(x << max(e, 0), m0),
                                              max(-e, 0))
        single_rounding:  (x * m0 + 2**(30 - e)) >> (31 - e)

    with m0, e of `quantize_multiplier`; the last two use int64 and no float at all.
    x: int32 (n,), (n, c) or (n, c, ...); m of shape () or (c,). Raises ConfigError for another rounding.
    Source: gemmlowp's fixedpoint.h, TFLite's common.h. Introduced in notebook 08.

    >>> [rescale(torch.tensor([-32, -96, 32, 96]), 2**-6, rule).tolist() for rule in ROUNDINGS]
    [[0, -2, 0, 2], [-1, -2, 1, 2], [0, -1, 1, 2]]
    """
    check_name(rounding, ROUNDINGS, "rounding")
    if rounding == "float":
        product = x.float() * along(torch.as_tensor(m, dtype=torch.float32), x)
        return torch.round(product).double().clamp(INT32.min, INT32.max).to(torch.int32)
    round_ = _rounder(m, rounding, x)
    return round_(x.to(torch.int64, copy=True)).clamp_(INT32.min, INT32.max).to(torch.int32)


def requantize(
    acc: Tensor, m: Tensor | float, zero_point: int, low: int, high: int, rounding: str = "float"
) -> Tensor:
    """The uint8 answer clamp(round(acc * M) + zero_point, low, high), rounded as in `rescale`.

    acc: int32 (n, c, ...); m: () or (c,); low, high: the output's integers, with `low` = zero_point after a
    ReLU. Same shape and memory layout out. Raises ConfigError for another rounding.
    Introduced in notebook 08.
    """
    check_name(rounding, ROUNDINGS, "rounding")
    if rounding == "float":  # rescale, but without a detour over int32
        multiplier = along(torch.as_tensor(m, dtype=torch.float32), acc)
    else:
        round_ = _rounder(m, rounding, acc)
    out = torch.empty_like(acc, dtype=torch.uint8)
    images = max(1, PIECE * len(acc) // max(1, acc.numel()))
    # Memory asked for anew by each piece would cost more than the arithmetic: the system clears its pages.
    scratch = torch.empty_like(acc[:images], dtype=torch.float32 if rounding == "float" else torch.int64)
    for part, q in zip(acc.split(images), out.split(images), strict=True):
        values = scratch[: len(part)].copy_(part)
        if rounding == "float":
            q.copy_(quantize_uint8(values.mul_(multiplier), 1.0, zero_point, low, high))
        else:  # this clamp is tighter than that of rescale
            q.copy_(round_(values).clamp_(low - zero_point, high - zero_point).add_(zero_point))
    return out


def along(values: Tensor, x: Tensor) -> Tensor:
    """`values`, () or one per channel, shaped to broadcast over axis 1 of `x` (n, c, ...)."""
    return values if values.dim() == 0 else values.reshape(-1, *[1] * (x.dim() - 2))


def _rounder(m: Tensor | float, rounding: str, like: Tensor) -> Callable[[Tensor], Tensor]:
    """round(x * M) by a rule of integers, for x shaped as `like` is: in place, int64, not yet saturated."""
    m0, exponent = (along(part, like) for part in quantize_multiplier(m))
    rule = _twice_rounded if rounding == "gemmlowp" else _once_rounded
    return lambda x: rule(x, m0, exponent)


def _twice_rounded(x: Tensor, m0: Tensor, exponent: Tensor) -> Tensor:
    """gemmlowp: the high half of twice the product, then a shift that rounds half away from zero; in place.

    gemmlowp nudges positive and negative products differently and lets the division cut towards zero:
    together that is half up, which one addition and a shift do. The second step is not.
    """
    left, right = exponent.clamp(min=0), (-exponent).clamp(min=0)
    if bool((left > 0).any()):
        x.bitwise_left_shift_(left).clamp_(INT32.min, INT32.max)
    high = x.mul_(m0).add_(2**30).bitwise_right_shift_(31)
    away = high >> 63  # -1 for negative numbers
    if not bool((right > 0).all()):
        away.mul_(right > 0)
    return high.add_(away).add_((1 << right) >> 1).bitwise_right_shift_(right)


def _once_rounded(x: Tensor, m0: Tensor, exponent: Tensor) -> Tensor:
    """One addition of a half, then a shift that rounds down: half up; in place."""
    return x.mul_(m0).add_(1 << (30 - exponent)).bitwise_right_shift_(31 - exponent)

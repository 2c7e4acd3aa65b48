"""Real int8 arithmetic: float32 to uint8 in cache-sized pieces, then oneDNN's u8 x s8 kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantlib.quantization.affine import QParams
from quantlib.quantization.observers.base import flat

PIECE = 1 << 18
"""Values quantized at a time: 1 MiB of float32, so that the passes over them stay in the cache."""

ROUNDER = 1.5 * 2**23
"""float32 has a step of 1 here: adding it rounds half to even and leaves the integer in the low bits."""


class Geometry(NamedTuple):
    """Where a convolution looks."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Geometry:
        """Where a convolution of a fused network looks."""
        padding = [int(side) for side in conv.padding]  # `fuse` has replaced 'same' by numbers
        return cls(list(conv.stride), padding, list(conv.dilation), conv.groups)


def has_onednn() -> bool:
    """Whether this build of torch has the int8 kernels (x86 does; otherwise a float32 stand-in computes)."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qconv2d_pointwise")


def as_uint8(qparams: QParams) -> QParams:
    """The same grid on unsigned integers: a signed one is shifted up by -quant_min (128 for int8)."""
    shift = -min(qparams.quant_min, 0)
    return QParams(
        qparams.scale, qparams.zero_point + shift, qparams.quant_min + shift, qparams.quant_max + shift
    )


def quantize_uint8(x: Tensor, inverse: float, zero_point: int, low: int, high: int) -> Tensor:
    """clamp(rint(x * inverse) + zero_point, low, high) as uint8: `affine.quantize`, bit for bit.

    One pass per operation over all of `x` would read and write main memory five times; over pieces it does so
    once. Clamping first changes nothing, since low and high are integers; then the sum with ROUNDER rounds,
    and its low byte is the answer. torch's own conversion of float32 to uint8 is not vectorized.
    x: float32, dense; same shape and layout out. Introduced in notebook 07.
    """
    x = x.float()
    out = torch.empty_like(x, dtype=torch.uint8)
    if out.stride() != x.stride():  # a view with gaps: two orders of memory, so copy first
        x = x.contiguous()
        out = torch.empty_like(x, dtype=torch.uint8)
    floats, integers = flat(x), flat(out)
    piece = torch.empty(min(PIECE, floats.numel()), device=x.device)
    for values, q in zip(floats.split(PIECE), integers.split(PIECE), strict=True):
        scaled = torch.mul(values, inverse, out=piece[: len(values)])
        scaled.clamp_(low - zero_point, high - zero_point).add_(ROUNDER)
        q.copy_(scaled.view(torch.int32))
        if zero_point:
            q.add_(zero_point)  # modulo 256, as the low byte of a negative number needs it
    return out


def fake_quantize_(x: Tensor, qparams: QParams) -> Tensor:
    """`affine.fake_quantize` in place, the same values, for inference: per tensor, float32, dense, finite.

        x <- rint(clamp(x * (1 / scale), quant_min - zero_point, quant_max - zero_point)) * scale

    The limits are integers, so clamping first changes nothing; the zero point cancels. One new tensor and
    one mask less than torch's kernel needs, and pieces that stay in the cache: several times as fast.
    Introduced in notebook 07.
    """
    zero_point, scale, inverse = int(qparams.zero_point), float(qparams.scale), float(1.0 / qparams.scale)
    for piece in flat(x).split(PIECE):
        piece.mul_(inverse).clamp_(qparams.quant_min - zero_point, qparams.quant_max - zero_point)
        piece.round_().mul_(scale)
    return x


def pack_conv(weight: Tensor, weight_scale: Tensor, geometry: Geometry, shape: Sequence[int]) -> Tensor:
    """int8 weight (out, in/groups, h, w) in the blocked layout that the kernel wants for inputs of `shape`.

    The layout depends on the height and width; one that does not fit is laid out anew by every call, which
    costs more than the convolution itself. Introduced in notebook 07.
    """
    if not has_onednn():
        return weight.float()
    pack = torch.ops.onednn.qconv_prepack
    packed: Tensor = pack(weight, weight_scale, 1.0, 0, *geometry, shape)
    return packed


def int8_conv(
    q: Tensor, grid: tuple[float, int], packed: Tensor, weight_scale: Tensor, weight_zero: Tensor,
    bias: Tensor | None, geometry: Geometry, relu: bool,
) -> Tensor:  # fmt: skip
    """relu(sum (q - zero_point) * qw  *  scale * weight_scale + bias) as float32, int32 sums inside.

    q: uint8 (n, c, h, w); grid: scale and zero point of q; weight_scale float32 (out,).
    Introduced in notebook 07.
    """
    scale, zero_point = grid
    if not has_onednn():
        sums = F.conv2d(q.float() - zero_point, packed, None, *geometry)
        return _finish(sums, scale * weight_scale.reshape(-1, 1, 1), bias, None, relu)
    out: Tensor = torch.ops.onednn.qconv2d_pointwise(
        q, scale, zero_point, packed, weight_scale, weight_zero, bias, *geometry,
        1.0, 0, torch.float32, "relu" if relu else "none", [], "",
    )  # fmt: skip
    return out


def pack_linear(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """int8 weight (out, in) in the blocked layout that the kernel wants for inputs of `shape`.

    Introduced in notebook 07.
    """
    if not has_onednn():
        return weight.float()
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, shape)
    return packed


def int8_linear(
    q: Tensor, grid: tuple[float, int], packed: Tensor, weight_scale: Tensor, weight_zero: Tensor,
    bias: Tensor | None, relu: bool, other: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """relu(sum (q - zero_point) * qw  *  scale * weight_scale + bias [+ other]) as float32.

    q: uint8 (n, in); other: float32 (n, out), the other summand of a residual block.
    Introduced in notebook 07.
    """
    scale, zero_point = grid
    if not has_onednn():
        return _finish(F.linear(q.float() - zero_point, packed), scale * weight_scale, bias, other, relu)
    integers = (q, scale, zero_point, packed, weight_scale, weight_zero)
    after: tuple[str, list[float], str] = ("relu" if relu else "none", [], "")
    if other is None:
        plain = torch.ops.onednn.qlinear_pointwise
        out: Tensor = plain(*integers, bias, 1.0, 0, torch.float32, *after)
        return out
    adding = torch.ops.onednn.qlinear_pointwise.binary
    out = adding(*integers, other, bias, 1.0, 0, torch.float32, 1.0, 0, "add", 1.0, *after)
    return out


def _finish(sums: Tensor, scale: Tensor, bias: Tensor | None, other: Tensor | None, relu: bool) -> Tensor:
    out = sums * scale
    if bias is not None:
        out = out + bias.reshape(-1, *[1] * (scale.dim() - 1))
    if other is not None:
        out = out + other
    return out.relu_() if relu else out

"""Exact integer products: a convolution's windows as rows, and int8 x int8 matrix products in int32."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from quantlib.errors import ConfigError
from quantlib.quantization.kernels import Geometry


def columns(
    q: Tensor, kernel: Sequence[int], geometry: Geometry, zero_point: int
) -> tuple[Tensor, list[int]]:
    """What each output pixel of a convolution sees, as one row (im2col); and the output's height and width.

    q: uint8 (n, c, h, w); returns q - 128 as int8 (groups, n*h'*w', kh*kw*c/groups), with zero_point - 128
    in the border. Raises ConfigError for a kernel larger than the image and its border. Introduced in
    notebook 08.
    """
    n, channels, height, width = q.shape
    (top, left), (stride_y, stride_x), (step_y, step_x) = (
        geometry.padding, geometry.stride, geometry.dilation
    )  # fmt: skip
    padded = q.new_full((n, height + 2 * top, width + 2 * left, channels), zero_point)
    padded[:, top : top + height, left : left + width] = q.permute(0, 2, 3, 1)
    signed = padded.bitwise_xor_(128).view(torch.int8)  # flipping the top bit subtracts 128
    images, rows, pixels, one = signed.stride()
    size = [
        (total - step * (side - 1) - 1) // stride + 1
        for total, step, side, stride in zip(
            signed.shape[1:3], geometry.dilation, kernel, geometry.stride, strict=True
        )
    ]
    if min(size) < 1:
        raise ConfigError(
            f"A kernel of {tuple(kernel)} is larger than its map of {(height, width)}; pass larger images."
        )
    groups, taps = geometry.groups, kernel[0] * kernel[1] * (channels // geometry.groups)
    windows = signed.as_strided(
        (n, *size, *kernel, groups, channels // groups),
        (images, stride_y * rows, stride_x * pixels, step_y * rows, step_x * pixels, channels // groups, one),
    )
    rows_of_groups = windows.permute(5, 0, 1, 2, 3, 4, 6)
    return rows_of_groups.reshape(groups, n * size[0] * size[1], taps), size


def int_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b in int32, modulo 2**32: int8 (groups, n, k) and (groups, k, m) to (n, groups * m).

    One group goes to oneDNN's int8 kernel, where that is exact; the rest goes through float64, and so do
    products of one number (k = 1), for which that kernel returns memory that nobody has written.
    """
    if len(a) == 1 and a.shape[-1] > 1 and int_mm_is_exact():
        return torch._int_mm(a[0], b[0])
    return exact_matmul(a, b).long().to(torch.int32)


def exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The same product in float64, which holds every integer up to 2**53."""
    return torch.bmm(a.double(), b.double()).transpose(0, 1).flatten(1)


@cache
def int_mm_is_exact() -> bool:
    """Whether torch._int_mm keeps the largest products: a CPU without VNNI may add pairs in 16 bits."""
    a, b = torch.full((64, 64), -128, dtype=torch.int8), torch.full((64, 64), 127, dtype=torch.int8)
    pairs = [(a, b), (b, a), (a, a), (b, b)]
    return all(torch.equal(torch._int_mm(left, right), left.int() @ right.int()) for left, right in pairs)

"""Will this layer overflow on a CPU without VNNI? Answered from the weights alone, before anything runs.

The instruction `vpmaddubsw` multiplies unsigned 8-bit activations by signed 8-bit weights and adds two
neighbouring products into a signed 16-bit number that saturates at -32768..32767. 255 * 127 fits once, not
twice. CPUs with VNNI sum four products in 32 bits and have no such limit.

Which two products are neighbours depends on the kernel. For oneDNN's convolutions and linear layers they are
input channels 2k and 2k + 1 of one group at the same kernel position (the last channel of an odd number is
alone, so depthwise layers are safe). The tests probe every pair of positions against oneDNN held to AVX2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlib.errors import ConfigError

INT16 = torch.iinfo(torch.int16)
"""The limits of a sum of two products."""


def _pairs(q: Tensor, dim: int) -> Tensor:
    """`q` as int32, `dim` last and in pairs: (..., ceil(n / 2), 2); an odd end is paired with 0."""
    q = q.to(torch.int32).movedim(dim, -1)
    return F.pad(q, (0, q.shape[-1] % 2)).unflatten(-1, (-1, 2))


def _checked(weight_q: Tensor, activation_max: int) -> None:
    if weight_q.dtype != torch.int8 or weight_q.dim() < 2 or weight_q.numel() == 0:
        raise ConfigError("The weights must be a non-empty int8 tensor (outputs, inputs / groups, ...).")
    if not 0 <= activation_max <= 255:
        raise ConfigError(f"activation_max is the largest uint8 activation, 0 to 255; not {activation_max}.")


def pair_sum_range(weight_q: Tensor, activation_max: int = 255) -> tuple[Tensor, Tensor]:
    """Least and greatest sum that each pair of products can reach, over activations 0..activation_max.

        low = activation_max * (min(w0, 0) + min(w1, 0));   high = activation_max * (max(w0, 0) + max(w1, 0))

    weight_q: int8 (O, I / groups, *kernel) or (O, I); both results int32 (O, *kernel, ceil(I / groups / 2)).
    The bound is reached: some activations produce it. Raises ConfigError on other weights or an
    activation_max outside 0..255. Introduced in notebook 05.
    """
    _checked(weight_q, activation_max)
    pairs = _pairs(weight_q, 1)
    return pairs.clamp(max=0).sum(-1) * activation_max, pairs.clamp(min=0).sum(-1) * activation_max


def largest_pair_sum(weight_q: Tensor, activation_max: int = 255) -> int:
    """The largest magnitude that any pair of products can reach; int16 holds 32767.

    Shapes and errors as `pair_sum_range`. Introduced in notebook 05.

    >>> largest_pair_sum(torch.tensor([[64, 64], [127, -127]], dtype=torch.int8))
    32640
    """
    low, high = pair_sum_range(weight_q, activation_max)
    return max(-int(low.min()), int(high.max()))


@dataclass(frozen=True)
class Risk:
    """A layer that can saturate: its largest pair sum, and how many pairs and output channels can."""

    name: str
    largest: int
    pairs: int
    channels: int


def layers_at_risk(layers: Mapping[str, tuple[Tensor, int]]) -> list[Risk]:
    """The layers whose pair sums can leave int16, worst first; an empty list means none can go wrong.

    layers: name -> (int8 weights, largest uint8 activation that reaches the layer; 255 if unknown).
    Safe for every layer: activations up to 127, or weights within -64..64 ("reduced range").
    Errors as `pair_sum_range`. Introduced in notebook 05.
    """
    found = []
    for name, (weight_q, activation_max) in layers.items():
        low, high = pair_sum_range(weight_q, activation_max)
        over = (low < INT16.min) | (high > INT16.max)
        if bool(over.any()):
            channels = int(over.flatten(1).any(1).sum())
            found.append(Risk(name, largest_pair_sum(weight_q, activation_max), int(over.sum()), channels))
    return sorted(found, key=lambda risk: -risk.largest)


def saturating_sum(products: Tensor, dim: int) -> Tensor:
    """Sum of products as `vpmaddubsw` adds them: neighbours along `dim` in int16, their sums in int32.

    products: integers of any shape; returns int32 without `dim`. Introduced in notebook 05.

    >>> saturating_sum(torch.tensor([32_000, 32_000, 5]), 0).item()
    32772
    """
    pairs = _pairs(products, dim).sum(-1)
    return pairs.clamp(INT16.min, INT16.max).sum(-1).to(torch.int32)


def saturating_linear(x_q: Tensor, weight_q: Tensor) -> Tensor:
    """What `vpmaddubsw` makes of a linear layer: sum over pairs of clamp(x0 * w0 + x1 * w1) to int16.

    x_q: uint8 (n, I); weight_q: int8 (O, I); returns int32 (n, O). A slow reference (n * O * I products at
    once). Introduced in notebook 05.

    >>> x = torch.full((1, 2), 255, dtype=torch.uint8)
    >>> saturating_linear(x, torch.full((1, 2), 127, dtype=torch.int8)).item(), 2 * 255 * 127
    (32767, 64770)
    """
    _checked(weight_q, 255)
    return saturating_sum(x_q.to(torch.int32)[:, None] * weight_q.to(torch.int32)[None], 2)


def saturating_conv2d(
    x_q: Tensor, weight_q: Tensor, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """What `vpmaddubsw` makes of a convolution; padding enters as the integer 0.

    x_q: uint8 (n, C, H, W); weight_q: int8 (O, C / groups, kh, kw); returns int32 (n, O, H', W').
    A slow reference for small layers. Introduced in notebook 05.
    """
    _checked(weight_q, 255)
    kernel = tuple(weight_q.shape[2:])
    columns = F.unfold(x_q.float(), kernel, padding=padding, stride=stride).to(torch.uint8)
    n, _, positions = columns.shape
    # (n, C * kh * kw, positions) -> per group rows of (kernel position, channel): each position's channels
    # start a new pair, so each is padded to an even number on its own.
    columns = columns.view(n, groups, -1, kernel[0] * kernel[1], positions)
    outputs = []
    for group, weights in enumerate(weight_q.chunk(groups)):
        total = torch.zeros(n * positions, weights.shape[0], dtype=torch.int32)
        for place in range(kernel[0] * kernel[1]):
            rows = columns[:, group, :, place].transpose(1, 2).flatten(0, 1)
            total += saturating_linear(rows, weights.flatten(2)[:, :, place])
        outputs.append(total.view(n, positions, -1))
    height = (x_q.shape[2] + 2 * padding - kernel[0]) // stride + 1
    return torch.cat(outputs, 2).transpose(1, 2).reshape(n, weight_q.shape[0], height, -1)

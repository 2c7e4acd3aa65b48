"""Many images through one unit, and how far two outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from quantlib.errors import ConfigError, NonFiniteError
from quantlib.quantization.reconstruction.network import LowBitNetwork
from quantlib.quantization.reconstruction.one_pass import one_pass
from quantlib.quantization.reconstruction.units import Unit

CHUNK = 32
"""Images that go through a unit together when nothing is trained."""


def all_of(batches: Iterable[Any], asker: str) -> Tensor:
    """The images of batches of x, or of (x, label), in one tensor; ConfigError where there are none."""
    if isinstance(batches, Tensor):
        raise ConfigError(f"{asker} needs an iterable of batches, not one tensor; pass [x].")
    shown = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches]
    if not any(len(part) for part in shown):
        raise ConfigError(f"{asker} got no batches; pass an iterable with at least one.")
    return torch.cat(shown)


@torch.no_grad()
def made_of(part_of: Callable[[Tensor], Tensor], x: Tensor, name: str) -> Tensor:
    """What a part of a network makes of all images, in half precision where that can hold it.

    part_of: its call; x: stored images, or what was made of them; name: of the part, for NonFiniteError.
    """
    parts = []
    for each in x.split(CHUNK):
        y = part_of(as_images(each))
        largest = float(y.abs().max())
        if not math.isfinite(largest):
            raise NonFiniteError(f"The output of {name} is not finite; look for NaN in weights or images.")
        parts.append(y.half() if largest < 6e4 else y)
    return torch.cat(parts)


@torch.no_grad()
def noise_of(part_of: Callable[[Tensor], Tensor], x: Tensor, wanted: Tensor) -> float:
    """sum |output - wanted|^2 of a part of a network, over all images."""
    pairs = zip(x.split(CHUNK), wanted.split(CHUNK), strict=True)
    return sum(float((part_of(as_images(each)) - target).square().sum()) for each, target in pairs)


def power_of(wanted: Tensor) -> float:
    """sum |wanted|^2, over all images; stored tensors are never whole in float32."""
    return sum(float(part.float().square().sum()) for part in wanted.split(CHUNK))


@torch.no_grad()
def through(network: LowBitNetwork, unit: Unit, x: Tensor, low_bit: bool = True, until: Any = None) -> Tensor:
    """What a unit makes of all images, in half precision where that can hold it. Notebook 10."""
    if until is unit.source:  # images as they are: `run` rounds them
        return x
    return made_of(lambda part: network.run(unit, part, low_bit, until), x, unit.name)


@torch.no_grad()
def error(network: LowBitNetwork, unit: Unit, low: Tensor, wanted: Tensor) -> float:
    """sum |output - wanted|^2 / sum |wanted|^2 of a unit of the twin, over all images. Notebook 10."""
    noise, signal = noise_of(lambda part: network.run(unit, part), low, wanted), power_of(wanted)
    return noise / signal if signal else noise


@one_pass
def distance(y: Tensor, wanted: Tensor) -> Tensor:
    """Mean over images and pixels of the squared distance, summed over channels."""
    return (y.float() - wanted).square().sum() * (y.shape[1] / y.numel())


def loaded(stored: Tensor, chosen: Tensor) -> Tensor:
    """Some images of a stored tensor, as convolutions like them."""
    return as_images(stored[chosen])


def as_images(stored: Tensor) -> Tensor:
    """Stored images in float32, with the channels last."""
    x = stored.float()
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

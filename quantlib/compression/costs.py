"""What a network costs: multiply-adds and parameters, counted from one image or from the layers alone."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quantlib.subject.modes import answering


class Cost(NamedTuple):
    """What one image costs: multiply-accumulates and parameters, in all and by layer."""

    macs: int
    parameters: int
    by_layer: dict[str, int]


@torch.no_grad()
def macs(model: nn.Module, image: Tensor) -> Cost:
    """Count the multiply-accumulates that the model's convolutions and linear layers need for one image.

        convolution: out * (in / groups) * kh * kw * h_out * w_out;  linear: out * in

    A layer that runs twice counts twice. Parameters are counted once, batch norms included. `image`:
    (channels, height, width) or a batch (n, channels, height, width), of which the mean is taken. Layers are
    modules nn.Conv2d and nn.Linear; functional calls are not seen. Introduced in notebook 11.

    >>> macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(3, 32, 32)).macs == 8 * 3 * 9 * 32 * 32
    True
    """
    batch = image if image.dim() == 4 else image[None]
    found: dict[str, int] = defaultdict(int)

    def count(name: str, layer: Any, output: Tensor) -> None:
        # Each output value is the product of one filter with one window.
        found[name] += output.numel() * layer.weight[0].numel() // len(batch)

    handles = [
        module.register_forward_hook(lambda layer, _, output, name=name: count(name, layer, output))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    try:
        with answering(model):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return Cost(sum(found.values()), sum(p.numel() for p in model.parameters()), dict(found))


def convolution_macs(layers: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of convolutions that follow each other, for one input of that height and width.

    Introduced in notebook 17.
    """
    total, (high, wide) = 0, size
    for conv in layers.modules():
        if isinstance(conv, nn.Conv2d):
            high, wide = (_moved(conv, axis, side) for axis, side in enumerate((high, wide)))
            total += conv.weight.numel() * high * wide
    return total


def _moved(conv: nn.Conv2d, axis: int, side: int) -> int:
    """How many places a window has along one axis."""
    reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
    return (side + 2 * int(conv.padding[axis]) - reach - 1) // conv.stride[axis] + 1

"""What the filters of a convolution see: the second moment of their windows, from calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantlib.compression.lowrank import find_convolution
from quantlib.errors import ConfigError

PLACES = 64
"""Windows taken from each image: neighbours overlap, so that more of them say little more."""


@torch.no_grad()
def second_moments(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], names: Sequence[str], seed: int = 0
) -> dict[str, Tensor]:
    """E[u u^T] for each named convolution, u the window that its filters multiply: (in kh kw, in kh kw).

    PLACES windows an image at places drawn at random from `seed`, averaged in float32; labels are not looked
    at. `model` should be in eval mode. Raises ConfigError for a name that is not a convolution without
    groups, or when there is no image. Introduced in notebook 17.
    """
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)
    generator = torch.Generator().manual_seed(seed)

    def listen(name: str, conv: nn.Conv2d) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = _windows(conv, inputs[0], generator)
            sums[name] = sums.get(name, 0) + seen.t() @ seen
            counts[name] += len(seen)

        return conv.register_forward_pre_hook(hook)

    handles = [listen(name, _convolution(model, name)) for name in names]
    try:
        for x, _ in batches:
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    if names and not all(counts.values()):
        raise ConfigError("The moments need at least one image; the batches are empty.")
    return {name: total / counts[name] for name, total in sums.items()}


def _windows(conv: nn.Conv2d, x: Tensor, generator: torch.Generator) -> Tensor:
    """PLACES windows of each image, or all where there are fewer: (n, in kh kw) float32."""
    unfolded = F.unfold(x.float(), conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore
    places = torch.randperm(unfolded.shape[2], generator=generator)[:PLACES]
    return unfolded[:, :, places].transpose(1, 2).flatten(0, 1)


def _convolution(model: nn.Module, name: str) -> nn.Conv2d:
    conv = find_convolution(model, name)
    if conv is None or conv.groups != 1 or isinstance(conv.padding, str):
        raise ConfigError(f"{name!r} is not a convolution without groups of this model.")
    return conv

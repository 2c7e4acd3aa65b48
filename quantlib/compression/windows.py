"""What the filters of a convolution see, and what their outputs do to the logits, from calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantlib.compression.factorized import can_be_factorized, find_convolution
from quantlib.errors import ConfigError
from quantlib.subject.modes import answering

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

    def see(name: str, conv: nn.Conv2d, x: Tensor, _: Tensor) -> None:
        seen = _windows(conv, x, generator)
        sums[name] = sums.get(name, 0) + seen.t() @ seen
        counts[name] += len(seen)

    _listen(model, names, see, lambda: [model(x) for x, _ in batches])
    unseen = [name for name, count in counts.items() if not count]
    if unseen and len(unseen) == len(names):
        raise ConfigError("The moments need at least one image; the batches are empty.")
    if unseen:
        raise ConfigError(f"The network never runs {', '.join(unseen)}; leave them out of the names.")
    return {name: total / counts[name] for name, total in sums.items()}


def logit_influence(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], names: Sequence[str], seed: int = 0
) -> dict[str, Tensor]:
    """What errors of a layer's outputs do to the logits z, by output channel: (out,), for each named layer.

        influence_o = E sum over places p of (d (z . v) / d y_op)^2,  v of independent signs

    To first order, independent errors of mean square e_o in channel o move the logits by E|dz|^2 = sum_o
    influence_o e_o. No labels are looked at. `model` should be in eval mode. Raises ConfigError as
    `second_moments` does. Introduced in notebook 17.
    """
    sums: dict[str, Tensor] = {}
    count, generator = 0, torch.Generator().manual_seed(seed)

    def see(name: str, conv: nn.Conv2d, _: Tensor, y: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            sums[name] = sums.get(name, 0) + gradient.detach().square().sum((0, 2, 3))

        y.register_hook(add)

    def run() -> None:
        nonlocal count
        for x, _ in batches:
            images = x.detach().clone().requires_grad_()
            logits = model(images)
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2 - 1
            torch.autograd.grad((logits * signs.to(logits)).sum(), images)  # the hooks listen on its way
            count += len(x)

    _listen(model, names, see, run)
    if not count:
        raise ConfigError("The influence needs at least one image; the batches are empty.")
    if unseen := [name for name in names if name not in sums]:
        raise ConfigError(f"The logits do not depend on {', '.join(unseen)}; leave them out of the names.")
    return {name: total / count for name, total in sums.items()}


def input_sizes(model: nn.Module, image: Tensor, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Height and width of what each named convolution reads, for one image (1, c, h, w).

    Introduced in notebook 17.
    """
    sizes: dict[str, tuple[int, int]] = {}

    def see(name: str, conv: nn.Conv2d, x: Tensor, _: Tensor) -> None:
        sizes[name] = (x.shape[2], x.shape[3])

    with torch.no_grad(), answering(model):
        _listen(model, names, see, lambda: model(image))
    return sizes


def _listen(
    model: nn.Module,
    names: Sequence[str],
    see: Callable[[str, nn.Conv2d, Tensor, Tensor], None],
    run: Callable[[], object],
) -> None:
    """Call see(name, convolution, input, output) at each call of a named convolution while `run` runs."""

    def hook(name: str) -> Callable[..., None]:
        return lambda conv, inputs, output: see(name, conv, inputs[0], output)

    handles = [_convolution(model, name).register_forward_hook(hook(name)) for name in names]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()


def _windows(conv: nn.Conv2d, x: Tensor, generator: torch.Generator) -> Tensor:
    """PLACES windows of each image, or all where there are fewer: (n, in kh kw) float32."""
    unfolded = F.unfold(x.float(), conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore
    places = torch.randperm(unfolded.shape[2], generator=generator)[:PLACES]
    return unfolded[:, :, places].transpose(1, 2).flatten(0, 1)


def _convolution(model: nn.Module, name: str) -> nn.Conv2d:
    conv = find_convolution(model, name)
    if conv is None or not can_be_factorized(conv):
        raise ConfigError(f"{name!r} is not a convolution of this model that can be factorized.")
    return conv

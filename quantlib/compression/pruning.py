"""Pruning of single weights: which go (magnitude or chance), where the count is kept, and when."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from quantlib.errors import ConfigError, NonFiniteError
from quantlib.quantization.graph import BATCH_NORMS

Masks = dict[str, Tensor]
"""A bool tensor for each pruned parameter, by its name ("layer1.0.conv1.weight"): True stays."""

SCOPES = ("global", "layer", "lamp")
"""Where the share of dropped weights is kept: in the whole network, in each layer, or in the whole network
with layers made comparable."""
KINDS = ("one_shot", "iterative", "gradual")
"""The ways to become sparse, see Schedule."""


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """The weights that pruning works on: of every convolution and linear layer; biases and norms stay.

    A weight that two layers share is there once, by its first name. Introduced in notebook 11.
    """
    found: dict[int, tuple[str, Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight  # a parametrized one is made anew at every look
            found.setdefault(id(weight), (f"{name}.weight" if name else "weight", weight))
    return dict(found.values())


def magnitude_masks(
    model: nn.Module, sparsity: float, scope: str = "global", within: Masks | None = None
) -> Masks:
    """Masks that drop the weights of least magnitude, round(sparsity * n) of n.

    scope "global": n is the whole network, and one threshold serves all layers; "layer": every layer loses
    the same share; "lamp": as "global", but each square counts as a share of the squares that are left in
    its layer when it is the next to go, w^2 / sum of v^2 over |v| >= |w|, so that the scale of a layer does
    not matter and none is emptied. `within`: masks of an earlier round, whose dropped weights stay dropped
    and count. Equal to torch.nn.utils.prune (but for "lamp") up to ties, of which the first ones go. Raises
    ConfigError for a sparsity outside [0, 1) or an unknown scope. Sources: Han et al. 2015; Lee et al. 2021
    (LAMP). Introduced in notebook 11.

    >>> layer = nn.Linear(4, 1)
    >>> layer.weight.data = torch.tensor([[0.5, -0.1, 0.3, -0.9]])
    >>> magnitude_masks(layer, 0.5)["weight"].tolist()
    [[True, False, False, True]]
    """
    scores = {name: weight.detach().abs() for name, weight in prunable(model).items()}
    for name, mask in (within or {}).items():
        scores[name] = scores[name].masked_fill(~mask.to(scores[name].device), -1.0)
    if scope == "lamp":
        scores = {name: _share_of_the_rest(score) for name, score in scores.items()}
    found = _keep_highest(scores, sparsity, scope)
    return found | {name: found[name] & mask.to(found[name].device) for name, mask in (within or {}).items()}


def _share_of_the_rest(magnitude: Tensor) -> Tensor:
    """LAMP's score of each weight of a layer; what is marked by -1 stays so and does not count."""
    ordered, place = magnitude.flatten().sort(stable=True)
    squares = ordered.double().clamp(min=0).square()
    rest = squares.flip(0).cumsum(0).flip(0)
    share = torch.where(ordered < 0, -1.0, squares / rest.clamp(min=1e-300))
    return torch.empty_like(share).scatter_(0, place, share).view(magnitude.shape)


def random_masks(model: nn.Module, sparsity: float, scope: str = "global", seed: int = 0) -> Masks:
    """Masks that drop weights by chance: the control that every clever choice must beat.

    Drawn by `numpy.random.default_rng(seed)`. Errors as `magnitude_masks`. Introduced in notebook 11.
    """
    rng = np.random.default_rng(seed)
    scores = {name: _drawn(weight, rng) for name, weight in prunable(model).items()}
    return _keep_highest(scores, sparsity, scope)


def shuffled_masks(masks: Masks, seed: int = 0) -> Masks:
    """The same number of weights in each layer as in `masks`, at places drawn by chance.

    Introduced in notebook 12.
    """
    rng = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(rng.permutation(mask.cpu().numpy().reshape(-1)).reshape(mask.shape))
        for name, mask in masks.items()
    }


def _drawn(weight: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random(tuple(weight.shape)))


def _keep_highest(scores: Mapping[str, Tensor], sparsity: float, scope: str) -> Masks:
    """True where the score is not among the lowest, of all or of each tensor."""
    if not 0 <= sparsity < 1:
        raise ConfigError(f"sparsity is {sparsity:g}; give a share of at least 0 and below 1.")
    if scope not in SCOPES:
        raise ConfigError(f"there is no scope {scope!r}; choose one of {', '.join(SCOPES)}.")
    if not scores:
        raise ConfigError("there is no convolution and no linear layer here, so nothing can be pruned.")
    if scope == "layer":
        return {name: _highest(score.flatten(), sparsity).view(score.shape) for name, score in scores.items()}
    together = _highest(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    parts = together.split([score.numel() for score in scores.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def _highest(score: Tensor, sparsity: float) -> Tensor:
    """Drop the round(sparsity * n) lowest; of equal ones those that come first, so that the count is exact.

    The k-th value takes a fifth of the time of sorting out the k lowest, and the rule for ties is ours, not
    that of a version of torch: weights stored in half precision are full of ties.
    """
    if not bool(torch.isfinite(score).all()):
        raise NonFiniteError("A weight is NaN or infinite; nothing can be ranked beside it.")
    count = round(sparsity * len(score))
    if count == 0:
        return torch.ones_like(score, dtype=torch.bool)
    limit = torch.kthvalue(score, count).values
    mask = score >= limit
    ties = (score == limit).nonzero()[:, 0]
    mask[ties[: count - int((~mask).sum())]] = False
    return mask


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set the dropped weights to zero, in place. Introduced in notebook 11."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        # Not a product: a weight that has become NaN must not hide behind 0 * NaN.
        weights[name].masked_fill_(~mask.to(weights[name].device), 0.0)


def mask_gradients(model: nn.Module, masks: Masks) -> None:
    """Set the gradients of dropped weights to zero, in place, so that no optimizer moves them.

    Introduced in notebook 11.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        gradient = weights[name].grad
        if gradient is not None:
            gradient.masked_fill_(~mask.to(gradient.device), 0.0)


def masks_of(model: nn.Module) -> Masks:
    """The masks of a pruned network: True where a weight is not zero. Introduced in notebook 11."""
    return {name: weight.detach() != 0 for name, weight in prunable(model).items()}


def sparsity_of(masks: Masks) -> float:
    """The share of dropped weights; 0 where there are no masks. Introduced in notebook 11."""
    size = sum(mask.numel() for mask in masks.values())
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / size if size else 0.0


@dataclass(frozen=True)
class Schedule:
    """How sparse a network is at `progress` in [0, 1] of its retraining.

        one_shot    s = final, from the first step
        iterative   1 - s = (1 - initial) ((1 - final) / (1 - initial))^(r / rounds) in round r = 1, 2, ..
        gradual     s = final + (initial - final) (1 - progress / until)^3

    `until`: the share of the training after which the sparsity stays at `final`. Raises ConfigError for an
    unknown kind or a number out of range. Source: Han et al. 2015; Zhu and Gupta 2017 (gradual, "AGP").
    Introduced in notebook 11.

    >>> gradual = Schedule(0.9, "gradual", until=0.5)
    >>> [round(gradual(p), 4) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.7875, 0.9, 0.9]
    """

    final: float
    kind: str = "one_shot"
    initial: float = 0.0
    rounds: int = 1
    until: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"there is no schedule {self.kind!r}; choose one of {', '.join(KINDS)}.")
        if not 0 <= self.initial <= self.final < 1 or self.rounds < 1 or not 0 < self.until <= 1:
            raise ConfigError(
                f"a schedule needs 0 <= initial <= final < 1, rounds >= 1 and 0 < until <= 1; not {self}."
            )

    def __call__(self, progress: float) -> float:
        """The sparsity at this point of the training."""
        done = min(progress / self.until, 1.0)
        if self.kind == "gradual":
            return self.final + (self.initial - self.final) * (1 - done) ** 3
        if self.kind == "iterative":
            step = min(int(done * self.rounds) + 1, self.rounds)
            left = (1 - self.final) / (1 - self.initial)
            return 1 - (1 - self.initial) * left ** (step / self.rounds)
        return self.final


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Estimate the statistics of all batch norms anew from training images, in place; no weight changes.

    Mean and variance are the plain averages over the batches. Pruned filters give weaker and narrower maps,
    so the old statistics do not fit them. Raises ConfigError without a batch; after any error the old
    statistics are back. Introduced in notebook 11.
    """
    shown = iter(batches)
    first = next(shown, None)
    if first is None:
        raise ConfigError("recalibrate got no batches; pass an iterable with at least one.")
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    before = [(norm.momentum, norm.training, copy.deepcopy(norm.state_dict())) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the average of all batches, not of the last ones
            norm.train()
        for x, _ in chain([first], shown):
            model(x)
    except BaseException:
        for norm, (*_, state) in zip(norms, before, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm, (momentum, training, _) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.train(training)

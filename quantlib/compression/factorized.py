"""Convolutions replaced by the factors of their filters, in any network of nn.Conv2d."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quantlib.compression.lowrank import METHODS, aware_factors, channel_matrix, check_rank, spatial_matrix
from quantlib.errors import ConfigError

LARGEST: dict[str, Callable[[Tensor], tuple[int, ...]]] = {
    "channel": lambda weight: (min(channel_matrix(weight).shape),),
    "spatial": lambda weight: (min(spatial_matrix(weight).shape),),
    "tucker2": lambda weight: (weight.shape[0], weight.shape[1]),
}
"""The largest ranks that a filter bank (out, in, kh, kw) allows, by method."""


class Plan(NamedTuple):
    """How one layer is factorized: a name of METHODS and the rank, for tucker2 the pair (out, in).

    Introduced in notebook 17.
    """

    method: str
    rank: int | tuple[int, int]


def factor_shapes(conv: nn.Conv2d, plan: Plan) -> list[tuple[int, int, int, int]]:
    """The shapes of the weights that a plan gives, in the order in which they are applied.

    Introduced in notebook 17.
    """
    (out, inputs, height, width), rank = conv.weight.shape, plan.rank
    if isinstance(rank, tuple):
        return [(rank[1], inputs, 1, 1), (rank[0], rank[1], height, width), (out, rank[0], 1, 1)]
    if plan.method == "spatial":
        return [(rank, inputs, height, 1), (out, rank, 1, width)]
    return [(rank, inputs, height, width), (out, rank, 1, 1)]


def factorized(
    conv: nn.Conv2d, plan: Plan, moment: Tensor | None = None, influence: Tensor | None = None
) -> nn.Sequential:
    """The convolutions that replace one: nn.Sequential, bias on the last, stride where its window is.

    With `moment` (and `influence`) the outputs err least, see `aware_factors`; without, the weights. Raises
    ConfigError for an unknown method, a rank that the layer does not have, or a convolution with groups or a
    padding other than zeros. Introduced in notebook 17.
    """
    check_plan(conv, plan)
    weight = conv.weight.detach()
    if moment is None:
        return assembled(conv, METHODS[plan.method](weight, plan.rank))
    return assembled(conv, aware_factors(weight, plan.method, plan.rank, moment, influence))


def check_plan(conv: nn.Conv2d, plan: Plan) -> None:
    """ConfigError for an unknown method, another kind of rank, or a convolution that cannot be factorized."""
    if plan.method not in METHODS:
        raise ConfigError(f"there is no method {plan.method!r}; choose one of {', '.join(METHODS)}.")
    pair = plan.method == "tucker2"
    ranks = plan.rank if isinstance(plan.rank, tuple) else (plan.rank,)
    if isinstance(plan.rank, tuple) != pair or len(ranks) != 1 + pair:
        raise ConfigError(f"tucker2 has a pair of ranks (out, in), the others one number; not so in {plan}.")
    if not can_be_factorized(conv):
        raise ConfigError("only convolutions without groups, padded with zeros by numbers, are factorized.")
    for rank, largest in zip(ranks, LARGEST[plan.method](conv.weight.to("meta")), strict=True):
        check_rank(rank, largest)


def can_be_factorized(conv: nn.Conv2d) -> bool:
    """Whether a convolution has no groups and is padded with zeros by numbers."""
    return conv.groups == 1 and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def skeleton(conv: nn.Conv2d, plan: Plan) -> nn.Sequential:
    """`factorized` with weights of the right shapes and no values: to load trained ones, or to count."""
    check_plan(conv, plan)
    return assembled(conv, [conv.weight.new_empty(shape) for shape in factor_shapes(conv, plan)])


def assembled(conv: nn.Conv2d, weights: Sequence[Tensor]) -> nn.Sequential:
    """Convolutions of these weights, one after the other, that move over the image as `conv` does."""
    # On each axis one factor strides, pads and dilates for all: the first that sees the whole window there.
    owners = [
        next(place for place, weight in enumerate(weights) if weight.shape[axis] == conv.weight.shape[axis])
        for axis in (2, 3)
    ]
    layers = [
        _part(conv, weight, [owner == place for owner in owners]) for place, weight in enumerate(weights)
    ]
    if conv.bias is not None:
        layers[-1].bias = nn.Parameter(conv.bias.detach().clone())
    return nn.Sequential(*layers)


def _part(conv: nn.Conv2d, weight: Tensor, owns: list[bool]) -> nn.Conv2d:
    """One factor as a convolution; on the axes that it owns it moves as the original does."""
    out, inputs, height, width = weight.shape
    like: dict[str, Any] = {
        name: tuple(value if own else rest for value, own in zip(getattr(conv, name), owns, strict=True))
        for name, rest in (("stride", 1), ("padding", 0), ("dilation", 1))
    }
    made = nn.Conv2d(inputs, out, (height, width), bias=False, device="meta", **like)
    made.weight = nn.Parameter(weight.clone().contiguous(memory_format=torch.channels_last))
    return made


def find_convolution(model: nn.Module, name: str) -> nn.Conv2d | None:
    """The convolution of that name; None where there is nothing, or something else."""
    found = dict(model.named_modules(remove_duplicate=False)).get(name)
    return found if isinstance(found, nn.Conv2d) else None


def factorize(
    model: nn.Module,
    plans: Mapping[str, Plan],
    moments: Mapping[str, Tensor] | None = None,
    influence: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """A copy of `model` with the named convolutions factorized; all else is as it was.

    `moments`: what `second_moments` found, by layer, and `influence`: what `logit_influence` found; see
    `aware_factors`. Any module tree of nn.Conv2d will do, a traced one too. Raises ConfigError, naming the
    layer, for a name that is not a convolution or a plan that it does not allow. Introduced in notebook 17.
    """
    known, weighed = moments or {}, influence or {}

    def made(name: str, conv: nn.Conv2d, plan: Plan) -> nn.Sequential:
        return factorized(conv, plan, known.get(name), weighed.get(name))

    return _replaced(model, plans, made)


def skeleton_of(model: nn.Module, plans: Mapping[str, Plan]) -> nn.Module:
    """A copy of `model` of the shape that `factorize` gives, its new weights without values.

    Introduced in notebook 17.
    """
    return _replaced(model, plans, lambda name, conv, plan: skeleton(conv, plan))


def _replaced(model: nn.Module, plans: Mapping[str, Plan], made: Any) -> nn.Module:
    result = copy.deepcopy(model)
    for name, plan in plans.items():
        conv = find_convolution(result, name)
        if conv is None:
            raise ConfigError(f"{name!r} is not a convolution of this model.")
        try:
            new = made(name, conv, plan)
        except ConfigError as error:
            raise ConfigError(f"Layer {name!r}: {error}") from None
        new.train(conv.training)
        if conv is result:
            return new
        for each in [path for path, part in result.named_modules(remove_duplicate=False) if part is conv]:
            parent, _, last = each.rpartition(".")
            setattr(result.get_submodule(parent), last, new)
    return result

"""What each layer could become, at which cost and with which error: the choices that ranks leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from quantlib.compression.costs import convolution_macs
from quantlib.compression.factorized import (
    LARGEST,
    Plan,
    can_be_factorized,
    factor_shapes,
    factorized,
    skeleton,
)
from quantlib.compression.lowrank import (
    METHODS,
    channel_matrix,
    composed,
    output_error,
    principal_outputs,
    rank_by_energy,
    spatial_matrix,
)
from quantlib.compression.windows import input_sizes
from quantlib.errors import ConfigError


class Choice(NamedTuple):
    """One way to have a layer: its plan (None: as it is), multiply-adds an image, parameters, error.

    error: E of the squared error of the outputs, each channel times its influence, see `aware_factors`.
    """

    plan: Plan | None
    macs: int
    parameters: int
    error: float


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions that can be factorized, by name. Introduced in notebook 17."""
    found = {name: part for name, part in model.named_modules() if isinstance(part, nn.Conv2d)}
    return {name: conv for name, conv in found.items() if can_be_factorized(conv)}


def by_energy(model: nn.Module, image: Tensor, energy: float, method: str = "channel") -> dict[str, Plan]:
    """For each convolution the least rank that holds `energy` of its weights' squares, where that saves MACs.

    For tucker2 both of its ranks do. `image`: (1, c, h, w). Raises ConfigError for an unknown method or an
    energy out of range. Introduced in notebook 17.
    """
    if method not in METHODS:
        raise ConfigError(f"there is no method {method!r}; choose one of {', '.join(METHODS)}.")
    layers, plans = convolutions(model), {}
    for name, size in input_sizes(model, image, list(layers)).items():
        plan = Plan(method, _rank(layers[name].weight.detach(), energy, method))
        if convolution_macs(skeleton(layers[name], plan), size) < convolution_macs(layers[name], size):
            plans[name] = plan
    return plans


def _rank(weight: Tensor, energy: float, method: str) -> int | tuple[int, int]:
    if method == "tucker2":
        swapped = weight.transpose(0, 1)
        return rank_by_energy(channel_matrix(weight), energy), rank_by_energy(channel_matrix(swapped), energy)
    return rank_by_energy((channel_matrix if method == "channel" else spatial_matrix)(weight), energy)


def list_choices(
    model: nn.Module,
    image: Tensor,
    moments: Mapping[str, Tensor],
    influence: Mapping[str, Tensor] | None = None,
    methods: Sequence[str] = ("channel", "spatial", "tucker2"),
    points: int = 8,
    step: int = 8,
) -> dict[str, list[Choice]]:
    """What each convolution in `moments` could become: the layer as it is first, then its factorizations.

    `points` ranks for each method, multiples of `step` (kernels like full vectors), spread between none and
    the rank that saves no multiply-adds any more. 1 x 1 filters have the method "channel" only: the others
    are the same there, or longer. `image`: (1, c, h, w). Introduced in notebook 17.
    """
    layers, found = convolutions(model), {}
    for name, size in input_sizes(model, image, list(moments)).items():
        conv, weighed = layers[name], (influence or {}).get(name)
        found[name] = [Choice(None, convolution_macs(conv, size), conv.weight.numel(), 0.0)]
        for method in methods if max(conv.kernel_size) > 1 else ("channel",):
            saving = plans_within(conv, method, size, 1.0, step)
            places = np.linspace(0, len(saving) - 1, min(points, len(saving))).round().astype(int)
            plans = [saving[place] for place in places]
            for plan, error in zip(plans, _errors(conv, plans, moments[name], weighed), strict=True):
                parameters = sum(prod(shape) for shape in factor_shapes(conv, plan))
                macs = convolution_macs(skeleton(conv, plan), size)
                found[name].append(Choice(plan, macs, parameters, error))
    return found


def rungs(conv: nn.Conv2d, method: str, step: int = 8) -> list[Plan]:
    """Every plan of a method whose rank is a multiple of `step`, both ranks in proportion for tucker2."""
    out, inputs = conv.weight.shape[:2]
    larger = max(out, inputs)
    top = larger if method == "tucker2" else LARGEST[method](conv.weight.to("meta"))[0]
    found = []
    for rung in range(step, top + 1, step):
        pair = tuple(
            min(side, max(step, round(rung * side / larger / step) * step)) for side in (out, inputs)
        )
        found.append(Plan(method, pair if method == "tucker2" else rung))  # type: ignore[arg-type]
    return found


def plans_within(
    conv: nn.Conv2d, method: str, size: tuple[int, int], share: float, step: int = 8
) -> list[Plan]:
    """The `rungs` with less than `share` of the layer's multiply-adds at this size of its input, rising.

    Introduced in notebook 17.
    """
    limit = share * convolution_macs(conv, size)
    return [
        plan for plan in rungs(conv, method, step) if convolution_macs(skeleton(conv, plan), size) < limit
    ]


def _errors(conv: nn.Conv2d, plans: Sequence[Plan], moment: Tensor, influence: Tensor | None) -> list[float]:
    """How much the outputs err under each plan; for "channel" one decomposition serves all ranks."""
    weight = conv.weight.detach()
    if plans and plans[0].method == "channel":
        scaled = weight if influence is None else weight * influence.sqrt().view(-1, 1, 1, 1)
        power = principal_outputs(scaled, moment)[0].tolist()
        return [sum(power[int(plan.rank) :]) for plan in plans]  # type: ignore[arg-type]
    errors = []
    for plan in plans:
        layers = factorized(conv, plan, moment, influence)
        change = weight - composed([part.weight.detach() for part in layers])  # type: ignore[operator]
        errors.append(output_error(change, moment, influence))
    return errors

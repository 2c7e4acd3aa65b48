"""Ranks for a whole network under one budget of multiply-adds or parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantlib.compression.factorized import Plan
from quantlib.compression.ranks import Choice
from quantlib.errors import ConfigError
from quantlib.quantization import allocation

COSTS = ("macs", "parameters")
"""What a budget can be of."""
Options = Mapping[str, Sequence[Choice]]
"""Every layer's choices, the layer as it is first; see `list_choices`."""


def allocate(options: Options, share: float, of: str = "macs") -> dict[str, Plan]:
    """The plans of least total error that cost at most `share` of these layers' "macs" or "parameters".

    The same knapsack as bits under a budget, `quantlib.quantization.allocation`: one choice a layer, the
    errors add up. Raises ConfigError for another cost, a share that is not above 0, or one that no choice
    can meet. Introduced in notebook 17.
    """
    _check(share, of)
    ways_of = {name: dict(enumerate(ways)) for name, ways in options.items()}
    errors = {name: {place: way.error for place, way in ways.items()} for name, ways in ways_of.items()}
    costs = {name: {place: _cost(way, of) for place, way in ways.items()} for name, ways in ways_of.items()}
    if sum(min(each.values()) for each in costs.values()) > share * _whole(options, of):
        raise ConfigError(f"No choice of ranks has {share:g} of the {of}; give a larger share.")
    places = allocation.allocate(errors, costs, int(share * _whole(options, of)))
    return _plans({name: ways_of[name][place] for name, place in places.items()})


def uniform(options: Options, share: float, of: str = "macs") -> dict[str, Plan]:
    """Every layer by itself takes its choice of least error within one limit on its share of its own cost.

    The limit is the largest, in steps of 0.01, with which all layers together keep to `share`; a layer
    without so cheap a choice takes its cheapest. Raises ConfigError as `allocate`. Introduced in notebook 17.
    """
    _check(share, of)
    for limit in range(100, 0, -1):
        picks = {name: _best_within(ways, limit / 100, of) for name, ways in options.items()}
        if sum(_cost(way, of) for way in picks.values()) <= share * _whole(options, of):
            return _plans(picks)
    raise ConfigError(f"No choice of ranks has {share:g} of the {of}; give a larger share.")


def _best_within(ways: Sequence[Choice], limit: float, of: str) -> Choice:
    fitting = [way for way in ways if _cost(way, of) <= limit * _cost(ways[0], of)]
    return min(fitting, key=lambda way: way.error) if fitting else min(ways, key=lambda way: _cost(way, of))


def total(options: Options, plans: Mapping[str, Plan], of: str) -> float:
    """What the layers of `options` cost (`of` "macs", "parameters") or err ("error") together under plans.

    Introduced in notebook 17.
    """
    picks = [next(way for way in ways if way.plan == plans.get(name)) for name, ways in options.items()]
    return float(sum(getattr(way, of) for way in picks))


def share_of(options: Options, plans: Mapping[str, Plan], of: str = "macs") -> float:
    """What the plans cost, as a share of what the layers cost as they are. Introduced in notebook 17."""
    return total(options, plans, of) / _whole(options, of)


def _cost(way: Choice, of: str) -> int:
    return int(getattr(way, of))


def _whole(options: Options, of: str) -> int:
    return sum(_cost(ways[0], of) for ways in options.values())


def _plans(picks: Mapping[str, Choice]) -> dict[str, Plan]:
    return {name: way.plan for name, way in picks.items() if way.plan is not None}


def _check(share: float, of: str) -> None:
    if of not in COSTS:
        raise ConfigError(f"a budget is of {' or '.join(COSTS)}, not of {of!r}.")
    if not share > 0:
        raise ConfigError(f"share is {share:g}; give a share above 0.")

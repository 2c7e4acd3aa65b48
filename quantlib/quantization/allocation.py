"""Mixed precision: which layer gets how many bits, when all of them together must fit a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from quantlib.errors import ConfigError

CELLS = 2**21
"""So finely is a budget divided at most; where sizes share a divisor that is coarser, the result is exact."""

Table = Mapping[str, Mapping[int, float]]
"""Costs or sizes: layer, then bits, then the number."""


def allocate(
    costs: Table, sizes: Mapping[str, Mapping[int, int]], budget: int, cells: int = CELLS
) -> dict[str, int]:
    """The bits of each layer of least total cost whose total size is no more than `budget`.

        minimize sum over l of costs[l][b_l]   subject to   sum over l of sizes[l][b_l] <= budget

    costs[layer][bits]: any real numbers, for instance the expected rise of the loss; sizes[layer][bits]:
    whole numbers >= 0, bits of storage or bit operations, of the same layers and widths. Dynamic programming
    over the layers: best[c] is the least cost of the layers so far within size c. Exact when the budget
    holds no more than `cells` times the greatest common divisor of the sizes; otherwise sizes are rounded
    up to whole cells, so the budget still holds, and the cost is the best on that coarser ruler.
    Raises ConfigError when the tables disagree, a size is no whole number, or nothing fits.
    Source: the multiple-choice knapsack (Kellerer et al. 2004, chapter 11). Introduced in notebook 10.

    >>> allocate({"a": {4: 1.0, 8: 0.0}, "b": {4: 5.0, 8: 0.0}},
    ...          {"a": {4: 40, 8: 80}, "b": {4: 40, 8: 80}}, budget=120)
    {'a': 4, 'b': 8}
    """
    _check(costs, sizes, budget)
    budget = int(budget)
    if cells < 1:
        raise ConfigError(f"cells must be 1 or more, not {cells}.")
    sizes = {name: {bits: int(size) for bits, size in each.items()} for name, each in sizes.items()}
    unit = _unit((size for each in sizes.values() for size in each.values()), budget, cells)
    room = budget // unit
    best = np.zeros(room + 1)
    taken: list[np.ndarray] = []
    for name, choices in costs.items():
        steps = [-(-sizes[name][bits] // unit) for bits in choices]
        best, which = _extend(best, steps, list(choices.values()))
        taken.append(which)
    if not np.isfinite(best[room]):
        least = sum(min(each.values()) for each in sizes.values())
        raise ConfigError(
            f"Even the fewest bits need more than the budget of {budget:,}; raise it, or offer fewer bits."
            if least > budget
            else f"The budget of {budget:,} holds the fewest bits ({least:,}), but not on {cells:,} cells, "
            "or at no finite cost; raise cells or the budget."
        )
    return _walk_back(costs, sizes, taken, room, unit)


def _check(costs: Table, sizes: Mapping[str, Mapping[int, int]], budget: int) -> None:
    if not costs or any(not choices for choices in costs.values()):
        raise ConfigError("An allocation needs layers, and at least one width for each.")
    if {name: set(choices) for name, choices in costs.items()} != {
        name: set(choices) for name, choices in sizes.items()
    }:
        raise ConfigError("costs and sizes must have the same layers and the same widths.")
    every = [size for each in sizes.values() for size in each.values()] + [budget]
    if any(isinstance(size, bool) or not 0 <= size < math.inf or int(size) != size for size in every):
        raise ConfigError("Sizes and the budget must be whole numbers, 0 or more.")
    if any(math.isnan(cost) or cost == -math.inf for each in costs.values() for cost in each.values()):
        raise ConfigError("A cost is not a number; measure it again.")


def _unit(sizes: Iterable[int], budget: int, cells: int) -> int:
    """The size of one cell: the divisor that all sizes share, or more when that makes too many cells."""
    shared = math.gcd(*(int(size) for size in sizes)) or 1
    return shared if budget // shared <= cells else -(-budget // cells)


def _extend(best: np.ndarray, steps: list[int], costs: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """One layer more: the least cost within each size, and which choice makes it."""
    new, which = np.full_like(best, np.inf), np.zeros(len(best), np.int32)
    for place, (step, cost) in enumerate(zip(steps, costs, strict=True)):
        if step >= len(best):
            continue
        trial = best[: len(best) - step] + cost
        better = trial < new[step:]
        new[step:][better], which[step:][better] = trial[better], place
    return new, which


def _walk_back(
    costs: Table, sizes: Mapping[str, Mapping[int, int]], taken: list[np.ndarray], room: int, unit: int
) -> dict[str, int]:
    """The choices that led to the best cost, last layer first."""
    chosen = {}
    for (name, choices), which in zip(reversed(list(costs.items())), reversed(taken), strict=True):
        bits = list(choices)[which[room]]
        room -= -(-sizes[name][bits] // unit)
        chosen[name] = bits
    return {name: chosen[name] for name in costs}


def total(table: Table, chosen: Mapping[str, int]) -> float:
    """The sum of a table of costs or sizes over an allocation. Introduced in notebook 10."""
    return sum(table[name][bits] for name, bits in chosen.items())


def average_bits(counts: Mapping[str, int], chosen: Mapping[str, int]) -> float:
    """Bits a value, averaged over all values: sum of counts * bits / sum of counts.

    Introduced in notebook 10.

    >>> average_bits({"a": 30, "b": 10}, {"a": 3, "b": 8})
    4.25
    """
    return sum(counts[name] * bits for name, bits in chosen.items()) / sum(counts[name] for name in chosen)


def bit_operations(macs: Mapping[str, int], weight: Mapping[str, int], activation: Mapping[str, int]) -> int:
    """Multiplications counted by the bits of both sides: sum of macs * bits of weight * bits of the input.

    `activation`: bits of the tensor that each layer reads. Introduced in notebook 10.

    >>> bit_operations({"a": 100, "b": 10}, {"a": 4, "b": 8}, {"a": 4, "b": 8})
    2240
    """
    return sum(macs[name] * weight[name] * activation[name] for name in macs)

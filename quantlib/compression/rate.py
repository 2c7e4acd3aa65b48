"""Sharing that knows what an index will cost: squared error plus a price on every bit that is stored.

k-means asks for the nearest shared value. But the words of a Huffman code differ in length, and the word for
zero is by far the shortest. Here a weight takes the value whose error *and* word are cheapest together, so
that pruning (take zero), sharing and coding become one choice with one price.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from quantlib.compression.codebook import weights_of
from quantlib.compression.huffman import entropy_bits
from quantlib.compression.sharing import Shared
from quantlib.errors import ConfigError, NonFiniteError

BINS = 4096
"""Bins of a histogram of weights."""
LOWEST = 1e-24
"""The price at which the search for a low one ends."""
SEARCH = 20
"""Iterations while a price is looked for."""
SETTLED = 1000
"""Iterations of the last sharing at that price, at most. At prices that matter it settles within 60."""


@dataclass(frozen=True)
class Histogram:
    """A layer's weights in BINS equal bins from -largest to largest: all that the iteration needs.

    count, total: how many weights that are not zero, and their sum, by bin; pinned: how many are zero.
    """

    largest: float
    count: NDArray[np.float64]
    total: NDArray[np.float64]
    pinned: int

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Histogram:
        """The histogram of weights of any shape."""
        left = values[values != 0]
        largest = float(np.abs(left).max(initial=0.0))
        if not math.isfinite(largest):
            raise NonFiniteError("A weight is NaN or infinite; it cannot be shared.")
        place = bins(left, largest)
        count = np.bincount(place, minlength=BINS).astype(np.float64)
        total = np.bincount(place, left, BINS).astype(np.float64)
        return cls(largest, count, total, values.size - len(left))


def bins(values: NDArray[np.float32], largest: float) -> NDArray[np.int64]:
    """The bin of each value."""
    factor = BINS / 2 / largest if largest else 0.0
    # The inverse of a tiny number is beyond float32.
    wide: NDArray[Any] = values if factor < 1e30 else values.astype(np.float64)
    place = (wide * wide.dtype.type(factor) + wide.dtype.type(BINS / 2)).astype(np.int64)
    return np.minimum(place, BINS - 1, out=place)


class Solution(NamedTuple):
    """Shared values, zero first; which one each bin takes; how many weights each has."""

    codebook: NDArray[np.float64]
    choice: NDArray[np.int64]
    members: NDArray[np.int64]


def solve(weights: Histogram, clusters: int, price: float, iterations: int) -> Solution:
    """The iteration of `share_at_rate` on a histogram."""
    count, total, size = weights.count, weights.total, weights.pinned + int(weights.count.sum())
    # Beside zero as many values on either side, at the odd places of a grid.
    grid = weights.largest * (2 * np.arange(clusters) + 1 - clusters) / clusters
    codebook = np.concatenate([[0.0], grid])
    # A short word for zero to begin with: else a value near zero may take zero's place for good.
    length = np.full(clusters + 1, np.log2(clusters + 1) + 2)
    length[0] = 0.3
    choice = np.zeros(BINS, np.int64)
    members = np.zeros(clusters + 1, np.float64)
    for _ in range(iterations):
        cost = count[:, None] * (np.square(codebook) + price * length) - 2 * total[:, None] * codebook
        before, choice = choice, cost.argmin(1)
        members = np.bincount(choice, count, clusters + 1).astype(np.float64)
        if np.array_equal(before, choice):
            break
        sums = np.bincount(choice, total, clusters + 1)
        codebook[1:] = np.where(members > 0, sums / np.maximum(members, 1), codebook)[1:]
        length = -np.log2(np.maximum(members + weights.pinned * (np.arange(clusters + 1) == 0), 1e-9) / size)
    members[0] += weights.pinned
    return Solution(codebook, choice, members.astype(np.int64))


def share_at_rate(weight: Tensor, clusters: int, price: float, iterations: int = SETTLED) -> Shared:
    """At most `clusters` shared values beside zero, for the least error + price * bits.

        minimize sum (w - c_k)^2 + price * bits_k  over codebook and indices,  bits_k = -log2(share of k)

    By turns: each weight takes the cheapest value, each value becomes the mean of its weights and zero stays
    zero, each length follows from the new shares. Every step lowers the sum. Weights are taken in BINS equal
    bins. `price` has the unit of a squared weight per bit; 0 is k-means from equal distances. Weights that
    are zero already stay zero. Raises ConfigError for a negative price or fewer than one cluster.
    Source: Chou, Lookabaugh and Gray 1989 (entropy-constrained quantization). Introduced in notebook 14.
    """
    if not price >= 0 or clusters < 1:  # NaN is no price
        raise ConfigError(f"price is {price:g} and clusters {clusters}; give at least 0 and 1.")
    values = weight.detach().cpu().numpy()
    weights = Histogram.of(values)
    found = solve(weights, clusters, price, iterations)
    used = np.flatnonzero((found.members > 0) | (np.arange(clusters + 1) == 0))
    rank = np.zeros(clusters + 1, np.int64)
    rank[used] = np.arange(len(used))
    index = np.where(values == 0, 0, rank[found.choice][bins(values, weights.largest)])
    return Shared(torch.from_numpy(found.codebook[used].astype(np.float32)), torch.from_numpy(index))


def importance(
    model: nn.Module, batches: Iterable[tuple[Tensor, Any]], blend: float = 0.3, seed: int = 0
) -> dict[str, float]:
    """How much a squared error of each layer's weights matters: F^blend / v^(1 - blend).

        F = mean over weights that are not zero of E[(d loss / d w)^2], labels drawn from the network (Fisher)
        v = mean square of these weights

    Two cheap answers, and each is wrong alone. F sees only small errors; 1 / v asks the same relative error
    of every layer, whatever it does to the loss. So both are blended; notebook 14 compares blends.
    With drawn labels the gradients of different images are independent and of mean 0, so one backward pass a
    batch is enough. `model` should be in eval mode. Raises ConfigError when there is no image. Introduced in
    notebook 14.
    """
    weights = weights_of(model)
    generator = torch.Generator().manual_seed(seed)
    sums, images = dict.fromkeys(weights, 0.0), 0
    for x, _ in batches:
        logits = model(x)
        chances = logits.detach().softmax(1).cpu()
        drawn = torch.multinomial(chances, 1, generator=generator)[:, 0].to(logits.device)
        gradients = torch.autograd.grad(
            F.cross_entropy(logits, drawn, reduction="sum"), list(weights.values())
        )
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            sums[name] += float(gradient[weight != 0].double().square().mean().nan_to_num())
        images += len(x)
    if not images:
        raise ConfigError("The importance needs at least one image; the batches are empty.")
    found = {}
    for name, weight in weights.items():
        square = float(weight.detach()[weight != 0].double().square().mean().nan_to_num())
        fisher = max(sums[name] / images, 1e-30)
        found[name] = fisher**blend / max(square, 1e-30) ** (1 - blend)
    return found


def layer_price(price: float, importance: float) -> float:
    """The price of a bit in a layer's own unit, a squared weight: price / importance.

    A layer without any importance pays so much that it keeps nothing but zeros. Introduced in notebook 14.
    """
    return price / max(importance, 1e-30)


def share_network(
    model: nn.Module, importances: Mapping[str, float], price: float, clusters: int = 16
) -> dict[str, Shared]:
    """Share every layer at one price for a bit: least sum of importance * error + price * bits.

    importances: by layer, as `importance` finds them. At one price the last bit buys as much everywhere, so
    no other division of the same bits over the layers does better by this measure. Introduced in notebook 14.
    """
    return {
        name: share_at_rate(weight, clusters, layer_price(price, importances[name]))
        for name, weight in weights_of(model).items()
    }


def price_of_size(
    model: nn.Module, importances: Mapping[str, float], megabytes: float, clusters: int = 16
) -> float:
    """The price at which the indices of all layers have an entropy of `megabytes` (10^6 bytes).

    Found by halving, to about 1 %; the file has norms, tables and the inefficiency of whole-bit words
    besides. Where the shared values are fewer than so many megabytes could tell apart, it is the lowest price
    that was tried. Raises ConfigError when even the highest price leaves more. Introduced in notebook 14.
    """
    weights = {name: Histogram.of(w.detach().cpu().numpy()) for name, w in weights_of(model).items()}

    def size(price: float) -> float:
        found = (
            solve(w, clusters, layer_price(price, importances[n]), SEARCH).members for n, w in weights.items()
        )
        return sum(entropy_bits(members) for members in found) / 8e6

    low, high = 1e-9, 1e3
    if size(high) > megabytes:
        raise ConfigError(f"These layers cannot be shared in {megabytes:g} MB.")
    while low > LOWEST and size(low) < megabytes:  # importances have a unit of their own, and so have prices
        low, high = low / 1e3, low
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if size(middle) > megabytes else (low, middle)
    return high

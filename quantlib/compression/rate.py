"""Sharing that knows what an index will cost: squared error plus a price on every bit that is stored.

k-means asks for the nearest shared value. But the words of a Huffman code differ in length, and the word for
zero is by far the shortest. Here a weight takes the value whose error *and* word are cheapest together, so
that pruning (take zero), sharing and coding become one choice with one price.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantlib.compression.codebook import weights_of
from quantlib.compression.sharing import Shared
from quantlib.errors import ConfigError

BINS = 4096


def share_at_rate(weight: Tensor, clusters: int, price: float, iterations: int = 60) -> Shared:
    """At most `clusters` shared values beside zero, for the least error + price * bits.

        minimize sum (w - c_k)^2 + price * bits_k  over codebook and indices,  bits_k = -log2(share of k)

    By turns: each weight takes the cheapest value, each value becomes the mean of its weights and zero stays
    zero, each length follows from the new shares. Every step lowers the sum. Weights are taken in BINS equal
    bins. `price` has the unit of a squared weight per bit; 0 is k-means from equal distances. Weights that
    are zero already stay zero. Raises ConfigError for a negative price or fewer than one cluster.
    Source: Chou, Lookabaugh and Gray 1989 (entropy-constrained quantization). Introduced in notebook 14.
    """
    if price < 0 or clusters < 1:
        raise ConfigError(f"price is {price:g} and clusters {clusters}; give at least 0 and 1.")
    values = weight.detach().cpu().numpy().astype(np.float64)
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return Shared(torch.zeros(1), torch.zeros(weight.shape, dtype=torch.int64))
    place = np.minimum(((values / largest + 1) * (BINS / 2)).astype(np.int64), BINS - 1)
    pinned = values == 0
    count = np.bincount(place[~pinned], minlength=BINS).astype(np.float64)
    total = np.bincount(place[~pinned], values[~pinned], BINS)
    # Zero comes first; an even number of clusters lies to both sides of it, at odd places of a grid.
    codebook = np.concatenate([[0.0], largest * (2 * np.arange(clusters) + 1 - clusters) / clusters])
    # A short word for zero to begin with: else a value near zero may take zero's place for good.
    length = np.full(clusters + 1, np.log2(clusters + 1) + 2)
    length[0] = 0.3
    choice = np.zeros(BINS, np.int64)
    for _ in range(iterations):
        cost = count[:, None] * (np.square(codebook) + price * length) - 2 * total[:, None] * codebook
        before, choice = choice, cost.argmin(1)
        if np.array_equal(before, choice):
            break
        members = np.bincount(choice, count, clusters + 1)
        sums = np.bincount(choice, total, clusters + 1)
        codebook[1:] = np.where(members > 0, sums / np.maximum(members, 1), codebook)[1:]
        members[0] += pinned.sum()
        length = np.log2(values.size / np.maximum(members, 1e-9))
    chosen = np.where(pinned, 0, choice[place])
    used, index = np.unique(np.concatenate([[0], chosen.ravel()]), return_inverse=True)
    shared = torch.from_numpy(codebook[used].astype(np.float32))
    return Shared(shared, torch.from_numpy(index[1:].reshape(values.shape)))


def importance(model: nn.Module, batches: Iterable[tuple[Tensor, Any]], seed: int = 0) -> dict[str, float]:
    """How much a squared error of each layer's weights matters: sqrt(F / v), for `share_network`.

        F = mean over weights of E[(d loss / d w)^2],  labels drawn from the network itself (Fisher)
        v = mean square of the weights that are not zero

    Two cheap answers, and each is wrong alone. F sees only small errors; 1 / v asks the same relative error
    of every layer, whatever it does to the loss. Their geometric mean was found by trying (notebook 14).
    With drawn labels the gradients of different images are independent and of mean 0, so one backward pass a
    batch is enough. `model` should be in eval mode. Raises ConfigError when there is no image.
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
        left = weight.detach()[weight != 0].double()
        found[name] = float((sums[name] / images / left.square().mean().clamp(min=1e-30)).sqrt().nan_to_num())
    return found


def share_network(
    model: nn.Module, importances: Mapping[str, float], price: float, clusters: int = 16
) -> dict[str, Shared]:
    """Share every layer at one price for a bit: least sum of importance * error + price * bits.

    importances: by layer, as `importance` finds them. At one price the last bit buys as much everywhere, so
    no other division of the same bits over the layers does better by this measure. Introduced in notebook 14.
    """
    weights = weights_of(model)
    return {
        name: share_at_rate(weight, clusters, price / max(importances[name], 1e-30))
        for name, weight in weights.items()
    }

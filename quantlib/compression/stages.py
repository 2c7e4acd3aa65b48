"""Deep Compression's own table: what pruning, sharing and Huffman coding each leave of a layer.

The paper's format: a weight that is left costs the bits of its codebook index and the bits of its distance to
the one before. Distances have a fixed number of bits, and fillers bridge longer ones. Then both kinds of
symbols get Huffman codes. Here every overhead counts: fillers, codebooks, code tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantlib.compression.huffman import Code, entropy_bits
from quantlib.compression.indices import relative
from quantlib.compression.records import distinct
from quantlib.errors import ConfigError

INDEX_BITS = range(2, 11)
"""Bits of a distance that are tried."""


@dataclass(frozen=True)
class Stages:
    """One layer, or all of them, after each stage; sizes in bits, every overhead in them.

    weights, left: how many, and how many are not zero; fillers: zeros stored to bridge gaps. pruned: float32
    weights with distances; shared: indices of `weight_bits` with distances of `index_bits`, and a float32
    codebook; coded: the same, Huffman-coded, with the tables; bound: the entropy of the coded symbols, with
    neither tables nor codebook. words_weight, words_index: the Huffman words alone.
    """

    name: str
    weights: int
    left: int
    fillers: int
    weight_bits: int
    index_bits: int
    words_weight: int
    words_index: int
    overhead: int
    pruned: int
    shared: int
    coded: int
    bound: float

    @property
    def columns(self) -> dict[str, float]:
        """The paper's columns: shares in percent of the float32 bits, bits a weight that is left."""
        left, whole = max(self.left, 1), 32 * self.weights
        return {
            "weights": self.weights,
            "left_percent": 100 * self.left / self.weights,
            "weight_bits": self.weight_bits,
            "weight_bits_huffman": self.words_weight / left,
            "index_bits": self.index_bits,
            "index_bits_huffman": self.words_index / left,
            "pruned_percent": 100 * self.pruned / whole,
            "shared_percent": 100 * self.shared / whole,
            "coded_percent": 100 * self.coded / whole,
        }


def stages_of(name: str, weight: Tensor, index_bits: int | None = None) -> Stages:
    """What the paper's format needs for one layer of shared weights.

    weight: any shape, few distinct values, zeros where pruned. `index_bits` None: the width from INDEX_BITS
    that makes the shared stage smallest. Raises ConfigError beyond 65,536 distinct values: share them first.
    Source: Han et al. 2016, tables 4 and 5. Introduced in notebook 14.
    """
    flat = weight.detach().cpu().float().numpy().ravel() + np.float32(0)
    values, symbols = distinct(flat)
    if len(values) > 1 << 16:
        raise ConfigError(f"{name} has {len(values):,} different weights; share them before they are coded.")
    places = np.flatnonzero(flat)
    zeros, has_zero = np.diff(places, prepend=-1) - 1, len(places) < len(flat)
    tried = [index_bits] if index_bits else INDEX_BITS
    chosen = min((_widths(zeros, has_zero, len(values), bits) for bits in tried), key=lambda each: each.bits)
    gaps, filler = relative(places, chosen.distance)
    stored = np.zeros(len(gaps), np.int64)
    stored[~filler] = symbols[places]
    counts = np.bincount(stored, minlength=1), np.bincount(gaps, minlength=1)
    codes = [Code.of(each) for each in counts]
    words = [code.cost(each) for code, each in zip(codes, counts, strict=True)]
    codebook, tables = 32 * chosen.values, 8 * sum(len(code.packed()) for code in codes)
    return Stages(
        name, len(flat), len(places), chosen.fillers, chosen.weight, chosen.distance,
        words_weight=words[0],
        words_index=words[1],
        overhead=codebook + tables,
        pruned=len(gaps) * (32 + chosen.distance),
        shared=chosen.bits,
        coded=sum(words) + codebook + tables,
        bound=sum(entropy_bits(each) for each in counts),
    )  # fmt: skip


class _Widths(NamedTuple):
    """Fixed widths of a weight's index and of a distance; fillers, values in the codebook, bits in all."""

    weight: int
    distance: int
    fillers: int
    values: int
    bits: int


def _widths(zeros: NDArray[np.int64], has_zero: bool, distinct_values: int, distance: int) -> _Widths:
    """What the shared stage needs with distances of so many bits; zeros: those before each weight left."""
    fillers = int((zeros >> distance).sum())
    # The codebook has a place for zero only where a filler needs it.
    values = distinct_values - int(has_zero and not fillers)
    weight = int(np.ceil(np.log2(max(values, 1))))
    bits = (len(zeros) + fillers) * (weight + distance) + 32 * values
    return _Widths(weight, distance, fillers, values, bits)


def total(name: str, layers: Iterable[Stages]) -> Stages:
    """All layers together; the bits of weights and indices are those of the widest layer."""
    every = [asdict(layer) for layer in layers]
    widest = {key: max(each[key] for each in every) for key in ("weight_bits", "index_bits")}
    summed = {key: sum(each[key] for each in every) for key in every[0] if key not in ("name", *widest)}
    return Stages(name=name, **widest, **summed)


def table(weights: Mapping[str, Tensor]) -> list[Stages]:
    """The stages of every layer, in order, and their total under the name "all layers".

    Introduced in notebook 14.
    """
    layers = [stages_of(name, weight) for name, weight in weights.items()]
    return [*layers, total("all layers", layers)]

"""Huffman's code, canonical: short words for frequent symbols, and a table known by its lengths alone.

No code of whole bits for single symbols is shorter. A canonical code sorts its words by length and then by
symbol, so that a reader who knows the lengths can work out every word.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantlib.compression import bits
from quantlib.errors import CheckpointError, ConfigError

MAX_LENGTH = 24
"""Bits of the longest word: with up to 7 bits of a byte before it, a word lies within four bytes."""

Counts = NDArray[np.int64]
"""How often each symbol occurs, int64 (symbols,)."""


def code_lengths(counts: ArrayLike, limit: int = MAX_LENGTH) -> NDArray[np.uint8]:
    """Bits of each symbol's word in the best prefix code of words up to `limit` bits; 0 where a count is 0.

        minimize sum(counts * lengths)  subject to  sum over the used of 2**-lengths <= 1,  lengths <= limit

    counts: whole numbers, one a symbol. With limit >= symbols - 1 this is Huffman's optimum. A single symbol
    gets one bit. Raises ConfigError for a negative count, or when `limit` bits have too few words.

    Package-merge: a word of l bits is l coins, worth 1/2, 1/4, ... 2**-l, each at the price of the symbol's
    count. The cheapest set of coins worth n - 1 is built from the smallest coins up: pair what there is in
    the order of its price, sort the pairs among the next larger coins. Source: Huffman 1952; Larmore and
    Hirschberg 1990. Introduced in notebook 14.

    >>> code_lengths([20, 10, 3]).tolist()
    [1, 2, 2]
    """
    counts = as_counts(counts)
    lengths = np.zeros(len(counts), np.uint8)
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    used = len(order)
    if used > 2**limit:
        raise ConfigError(f"{used} symbols have no words of at most {limit} bits; raise the limit.")
    if used < 2:
        lengths[order] = 1
        return lengths
    price = counts[order]
    levels, items = [], price[:0]
    for _ in range(min(limit, used - 1)):
        pairs = items[: len(items) // 2 * 2].reshape(-1, 2).sum(1)
        both = np.concatenate([price, pairs])
        sorting = np.argsort(both, kind="stable")
        items = both[sorting]
        levels.append(sorting < used)  # a coin of a symbol, not a pair
    taken = 2 * used - 2
    for is_coin in reversed(levels):
        coins = int(is_coin[:taken].sum())
        lengths[order[:coins]] += 1  # coins are taken from the cheapest up
        taken = 2 * (taken - coins)
    return lengths


def entropy_bits(counts: ArrayLike) -> float:
    """The least bits for these symbols under any code that knows their shares: -sum(c * log2(c / sum(c))).

    Source: Shannon 1948. Introduced in notebook 14.

    >>> round(entropy_bits([20, 10, 3]), 2)
    42.05
    """
    used = as_counts(counts)
    used = used[used > 0]
    return float((used * np.log2(used.sum() / used)).sum()) if len(used) else 0.0


@dataclass(frozen=True)
class Code:
    """A canonical prefix code: of each symbol the length and the word, right-aligned.

    lengths: uint8 (symbols,), 0 where a symbol has no word; words: uint32 (symbols,).
    Introduced in notebook 14.
    """

    lengths: NDArray[np.uint8]
    words: NDArray[np.uint32]

    @classmethod
    def of(cls, counts: ArrayLike, limit: int = MAX_LENGTH) -> Code:
        """The best code for symbols that occur so often; see `code_lengths`."""
        return cls.from_lengths(code_lengths(counts, limit))

    @classmethod
    def from_lengths(cls, lengths: ArrayLike) -> Code:
        """The canonical code of these lengths.

            first word of length l+1 = 2 * (first word of length l + words of length l)

        Raises CheckpointError when no prefix code has these lengths.
        """
        lengths = np.asarray(lengths, np.uint8)
        how_many = np.bincount(lengths, minlength=MAX_LENGTH + 1)
        how_many[0] = 0
        if len(how_many) > MAX_LENGTH + 1 or kraft(how_many) > 2**MAX_LENGTH:
            raise CheckpointError("The code lengths are those of no prefix code; the file is damaged.")
        order = np.argsort(lengths, kind="stable")[np.count_nonzero(lengths == 0) :]
        # Left-aligned, every word begins where the one before it ends.
        steps = np.int64(1) << (MAX_LENGTH - lengths[order].astype(np.int64))
        words = np.zeros(len(lengths), np.uint32)
        words[order] = (np.cumsum(steps) - steps) >> (MAX_LENGTH - lengths[order].astype(np.int64))
        return cls(lengths, words)

    def cost(self, counts: ArrayLike) -> int:
        """Bits that symbols of these counts take; ConfigError when one of them has no word."""
        counts = as_counts(counts)
        lengths = np.zeros(len(counts), np.int64)
        lengths[: len(self.lengths)] = self.lengths[: len(counts)]
        if np.any((counts > 0) & (lengths == 0)):
            raise ConfigError("A symbol has no word in this code; make the code from all symbols.")
        return int((counts * lengths).sum())

    def packed(self) -> bytes:
        """The lengths as bytes: the change from each to the next, small numbers in few bits."""
        lengths: NDArray[np.int64] = self.lengths.astype(np.int64)
        return bits.put_unary(bits.zigzag(np.diff(lengths, prepend=0)))

    @classmethod
    def unpacked(cls, data: bytes, symbols: int) -> tuple[Code, int]:
        """The code of `symbols` lengths at the beginning of `data`, and the bytes that it took there.

        Raises CheckpointError when there is no such code.
        """
        changes, used = bits.get_unary(data, symbols)
        lengths = np.cumsum(bits.unzigzag(changes))
        if len(lengths) and (lengths.min() < 0 or lengths.max() > MAX_LENGTH):
            raise CheckpointError("A code length is out of range; the file is damaged.")
        return cls.from_lengths(lengths), used

    def word(self, symbol: int) -> str:
        """The word of a symbol in zeros and ones, for people."""
        return f"{self.words[symbol]:0{self.lengths[symbol]}b}" if self.lengths[symbol] else ""


def kraft(how_many: NDArray[np.int64]) -> int:
    """Kraft's sum over the number of words of each length, in units of 2**-MAX_LENGTH."""
    return sum(int(n) << (MAX_LENGTH - length) for length, n in enumerate(how_many))


def as_counts(counts: ArrayLike) -> Counts:
    """Counts as int64; ConfigError unless they are whole and not negative."""
    found = np.asarray(counts)
    if found.ndim != 1 or (found.size and (found.dtype.kind not in "iu" or found.min() < 0)):
        raise ConfigError("Counts are whole numbers from 0 up, one for each symbol.")
    return found.astype(np.int64)

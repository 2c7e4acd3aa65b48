"""Bits behind each other in bytes, the first in the highest place; and small numbers in few of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantlib.errors import CheckpointError


def put(words: NDArray[np.uint32], lengths: NDArray[np.integer]) -> bytes:
    """Words of the given lengths, up to 24 bits, as one string of bits, filled up with zeros to whole bytes.

    Word i begins at bit sum(lengths[:i]). Introduced in notebook 14.

    >>> put(np.array([0b1, 0b011], np.uint32), np.array([1, 3])).hex()
    'b0'
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    starts = ends - lengths
    # Each word lies in one or two neighbouring pieces of 32 bits. No two words share a bit, so a sum is an
    # or, and float64 holds sums below 2**53 exactly.
    shift = (64 - (starts & 31) - lengths).astype(np.uint64)
    wide = words.astype(np.uint64) << shift
    pieces = -(-total // 32) + 1
    place = starts >> 5
    first = np.bincount(place, (wide >> np.uint64(32)).astype(np.float64), pieces)
    second = np.bincount(place + 1, (wide & np.uint64(0xFFFFFFFF)).astype(np.float64), pieces + 1)[:pieces]
    return (first + second).astype(">u4").tobytes()[: -(-total // 8)]


def put_unary(numbers: NDArray[np.integer]) -> bytes:
    """Numbers from 0 up, each as so many ones and a zero: a good code for lists of mostly 0 and 1."""
    ends = np.cumsum(np.asarray(numbers, np.int64) + 1)
    bits = np.ones(int(ends[-1]) if len(ends) else 0, np.uint8)
    bits[ends - 1] = 0
    return np.packbits(bits).tobytes()


def get_unary(data: bytes, count: int) -> tuple[NDArray[np.int64], int]:
    """The `count` numbers that `put_unary` wrote at the beginning of `data`, and how many bytes they took.

    Raises CheckpointError when there are fewer.
    """
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    ends = np.flatnonzero(bits == 0)[:count]
    if len(ends) < count:
        raise CheckpointError("A table of the file ends too early; the file is damaged.")
    used = -(-(int(ends[-1]) + 1) // 8) if count else 0
    return np.diff(ends, prepend=-1) - 1, used


def zigzag(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ..."""
    return np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)


def unzigzag(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """What `zigzag` was given."""
    return np.where(numbers & 1, -(numbers + 1) // 2, numbers // 2)

"""One array of the compressed file: its distinct values, and streams that say which stands where.

Three ways, the shortest wins: `raw`, float32 as it is; `dense`, a symbol for every value; `sparse`, the zeros
before each value that is not zero in one stream, and which value it is in another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlib.compression import indices, lanes
from quantlib.compression.huffman import Code
from quantlib.errors import CheckpointError

RAW, DENSE, SPARSE = range(3)
"""The ways to store an array."""
HALF = 4
"""Added to the way where the distinct values fit into float16."""
SPANS = (4, 6, 8, 10)
"""Runs of zeros up to 2**4 .. 2**10 are tried: long spans need few skips and a long table."""

Floats = NDArray[np.float32]
"""Values of an array, float32."""


@dataclass(frozen=True)
class Sizes:
    """What one array holds and what each part of its record takes, in bytes.

    values, nonzero, distinct: how many. symbols: the words that say which value; places: those that say
    where; tables: the codes and the beginnings of lanes; codebook: the distinct values, or all when raw.
    """

    name: str
    values: int
    nonzero: int
    distinct: int
    symbols: int
    places: int
    tables: int
    codebook: int

    @property
    def total(self) -> int:
        """Bytes of the record, without the byte that names its way."""
        return self.symbols + self.places + self.tables + self.codebook


def encode(name: str, values: Floats) -> tuple[bytes, Sizes]:
    """The shortest record of an array, lossless but for the sign of zeros. Introduced in notebook 14."""
    flat = values.ravel() + np.float32(0)  # -0.0 becomes 0.0: one zero is enough
    patterns, symbols = distinct(flat)
    nonzero = int(np.count_nonzero(flat))
    raw = bytes([RAW]) + flat.tobytes()
    best = raw, Sizes(name, len(flat), nonzero, len(patterns), 0, 0, 0, len(raw) - 1)
    if len(flat) == 0 or len(patterns) > min(lanes.MAX_SYMBOLS, len(flat)):
        return best
    ways = [_dense(symbols, patterns)]
    if len(patterns) > 1 and patterns[0] == 0 and nonzero < len(flat):
        ways += [_sparse(symbols, patterns, bits) for bits in SPANS]
    for record, parts in ways:
        if len(record) < len(best[0]):
            best = record, Sizes(name, len(flat), nonzero, len(patterns), *parts)
    return best


def distinct(values: Floats) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The different values by their bits, so that not even a NaN changes, and which of them each value is.

    What `numpy.unique` gives, without sorting the zeros, which are most of a pruned layer.
    Introduced in notebook 14.
    """
    patterns = values.view(np.uint32)
    places = np.flatnonzero(patterns)
    left = patterns[places]
    found = np.unique(left)
    symbols = np.zeros(len(values), np.int64)
    symbols[places] = np.searchsorted(found, left)
    if len(places) == len(values):
        return found, symbols
    symbols[places] += 1
    return np.concatenate([np.zeros(1, np.uint32), found]), symbols


Way = tuple[bytes, tuple[int, int, int, int]]
"""A record, and the bytes of its symbols, places, tables and codebook."""


def _dense(symbols: NDArray[np.int64], patterns: NDArray[np.uint32]) -> Way:
    flag, codebook = _codebook(patterns)
    head, data = _stream(symbols)
    return bytes([DENSE + flag]) + codebook + head + data, (len(data), 0, len(head), len(codebook))


def _sparse(symbols: NDArray[np.int64], patterns: NDArray[np.uint32], bits: int) -> Way:
    places = np.flatnonzero(symbols)
    flag, codebook = _codebook(patterns[1:])
    where_head, where = _stream(indices.runs(places, 2**bits))
    what_head, what = _stream(symbols[places] - 1)
    record = bytes([SPARSE + flag]) + codebook + bytes([bits]) + where_head + where + what_head + what
    return record, (len(what), len(where), len(where_head) + len(what_head) + 1, len(codebook))


def _codebook(patterns: NDArray[np.uint32]) -> tuple[int, bytes]:
    values = patterns.view(np.float32)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    fits = np.array_equal(half.astype(np.float32).view(np.uint32), patterns)
    return (HALF if fits else 0), varint(len(patterns)) + (half if fits else values).tobytes()


def _stream(symbols: NDArray[np.int64]) -> tuple[bytes, bytes]:
    """Head (number of symbols, code, bytes, lanes) and words."""
    code = Code.of(np.bincount(symbols))
    stream = lanes.write(symbols, code)
    numbers = [len(symbols), len(code.lengths), len(stream.data), *stream.lane_bits.tolist()]
    return b"".join(varint(number) for number in numbers) + code.packed(), stream.data


def varint(number: int) -> bytes:
    """A number from 0 up in groups of seven bits, the lowest first; the top bit says that more follow."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


class Reader:
    """Takes bytes off the front of a file, and never more than there are."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = memoryview(data), 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes; CheckpointError when there are fewer."""
        if not 0 <= size <= len(self.data) - self.place:
            raise CheckpointError("it ends too early; it is cut off or damaged")
        self.place += size
        return bytes(self.data[self.place - size : self.place])

    def varint(self) -> int:
        """The next number."""
        number, shift = 0, 0
        while shift < 35:
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7
        raise CheckpointError("it holds a number that is too large; it is damaged")

    def stream(self, largest: int) -> lanes.Stream:
        """The next stream of at most `largest` symbols."""
        size, alphabet, length = self.varint(), self.varint(), self.varint()
        if size > min(largest, 8 * length) or alphabet > lanes.MAX_SYMBOLS:
            raise CheckpointError("it asks for more values than it can hold; it is damaged")
        lane_bits = np.array([self.varint() for _ in range(lanes.lanes_of(size) - 1)], np.int64)
        code, used = Code.unpacked(bytes(self.data[self.place :][: 8 * alphabet + 8]), alphabet)
        self.take(used)
        return lanes.Stream(self.take(length), code, size, lane_bits)


@dataclass(frozen=True)
class Pending:
    """An array whose streams are not read yet: all streams of a file are read together."""

    streams: list[lanes.Stream]
    finish: Callable[[list[NDArray[np.uint16]]], Floats]


def decode(reader: Reader, size: int) -> Pending:
    """The next record, of an array of `size` values; CheckpointError when it does not fit."""
    flags = reader.take(1)[0]
    way, half = flags & 3, bool(flags & HALF)
    if flags >= 8 or way > SPARSE:
        raise CheckpointError("it names a way of coding that this version does not know; it is damaged")
    if way == RAW:
        values = np.frombuffer(reader.take(4 * size), np.float32)
        return Pending([], lambda _: values)
    distinct = reader.varint()
    if distinct > min(lanes.MAX_SYMBOLS, size):
        raise CheckpointError("it has more distinct values than values; it is damaged")
    stored = np.frombuffer(reader.take(distinct * (2 if half else 4)), np.float16 if half else np.float32)
    codebook = stored.astype(np.float32)
    if way == DENSE:
        stream = reader.stream(size)
        return Pending([stream], lambda found: _finish_dense(found[0], codebook, size))
    span = 2 ** min(reader.take(1)[0], 16)
    where = reader.stream(2 * size)
    what = reader.stream(size)
    return Pending([where, what], lambda found: _finish_sparse(found[0], found[1], codebook, span, size))


def _finish_dense(symbols: NDArray[np.uint16], codebook: Floats, size: int) -> Floats:
    if len(symbols) != size:
        raise CheckpointError("an array has too few values; it is damaged")
    return _look_up(codebook, symbols)


def _finish_sparse(
    where: NDArray[np.uint16], what: NDArray[np.uint16], codebook: Floats, span: int, size: int
) -> Floats:
    places = indices.positions_of(where, span, size)
    if len(places) != len(what):
        raise CheckpointError("places and values do not match; it is damaged")
    values = np.zeros(size, np.float32)
    values[places] = _look_up(codebook, what)
    return values


def _look_up(codebook: Floats, symbols: NDArray[np.uint16]) -> Floats:
    if len(symbols) and int(symbols.max()) >= len(codebook):
        raise CheckpointError("an index points behind its codebook; it is damaged")
    return codebook[symbols]

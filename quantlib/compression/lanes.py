"""A stream of prefix-coded symbols cut into lanes, which are read side by side, one table look-up a symbol.

A prefix code must be read from its beginning: where the second word starts, the first one tells. So one
stream is one slow chain. Cut into lanes whose beginnings are known, it is many chains, and each step of all
of them is a few operations on arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantlib.compression import bits
from quantlib.compression.huffman import MAX_LENGTH, Code
from quantlib.errors import CheckpointError, ConfigError

LANE = 4096
"""Symbols a lane; its beginning costs two bytes or so, hardly a thousandth of what it holds."""
TABLE_BITS = 12
"""Words up to this length are found by one look-up, longer ones by a search; 4096 entries stay in a cache."""
MAX_SYMBOLS = 1 << 16
"""Symbols that an alphabet may have."""


class Stream(NamedTuple):
    """Coded symbols: the bytes, their code, how many there are, and the bits of each lane but the last."""

    data: bytes
    code: Code
    size: int
    lane_bits: NDArray[np.int64]


def write(symbols: ArrayLike, code: Code) -> Stream:
    """Code symbols, 0 .. 65535, in lanes of LANE; ConfigError when one has no word.

    Introduced in notebook 14.
    """
    chosen = np.asarray(symbols, np.int64)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= min(len(code.lengths), MAX_SYMBOLS)):
        raise ConfigError("A symbol lies outside its alphabet; make the code from all symbols.")
    lengths = code.lengths[chosen].astype(np.int64)
    if len(lengths) and not lengths.all():
        raise ConfigError("A symbol has no word in this code; make the code from all symbols.")
    lane_bits = np.add.reduceat(lengths, np.arange(0, len(chosen), LANE)) if len(chosen) else lengths
    return Stream(bits.put(code.words[chosen], lengths), code, len(chosen), lane_bits[:-1])


def read(streams: Sequence[Stream]) -> list[NDArray[np.uint16]]:
    """The symbols of each stream, all lanes of all streams at once.

        window = 32 bits at the lane's place;  symbol, length = table[window >> 20];  place += length

    Raises CheckpointError when the words do not end where the lanes do. Introduced in notebook 14.
    """
    for stream in streams:
        # A word has a bit at least: a short file cannot ask for a long answer.
        if stream.size > 8 * len(stream.data) or len(stream.lane_bits) != lanes_of(stream.size) - 1:
            raise CheckpointError("A stream holds fewer words than it should; the file is damaged.")
    # Long lanes first, so that the lanes still at work are always the first ones.
    lanes = sorted(_lanes(streams), key=lambda lane: -lane.size)
    if not lanes:
        return [np.zeros(0, np.uint16) for _ in streams]
    decoded = _decode(b"".join(stream.data for stream in streams), lanes, [s.code for s in streams])
    results = [np.empty(stream.size, np.uint16) for stream in streams]
    for column, lane in enumerate(lanes):
        results[lane.stream][lane.first : lane.first + lane.size] = decoded[: lane.size, column]
    return results


def lanes_of(count: int) -> int:
    """How many lanes a stream of `count` symbols has, at least one."""
    return max(1, -(-count // LANE))


class _Lane(NamedTuple):
    stream: int
    first: int  # place of its first symbol in the stream
    size: int
    start: int  # in bits, of all streams joined
    end: int
    spare: int  # bits that may be left at its end: those of the last byte of a stream


def _lanes(streams: Sequence[Stream]) -> Iterator[_Lane]:
    base = 0
    for number, stream in enumerate(streams):
        end_of_all = base + 8 * len(stream.data)
        starts = base + np.concatenate([[0], np.cumsum(stream.lane_bits)])
        if np.any(stream.lane_bits < 0) or starts[-1] > end_of_all:
            raise CheckpointError("A lane begins outside its stream; the file is damaged.")
        for place, start in enumerate(starts):
            last = place == len(starts) - 1
            size = min(LANE, stream.size - place * LANE)
            if size > 0:
                end = end_of_all if last else int(starts[place + 1])
                yield _Lane(number, place * LANE, size, int(start), end, 7 if last else 0)
        base = end_of_all


def _decode(data: bytes, lanes: Sequence[_Lane], codes: Sequence[Code]) -> NDArray[np.uint16]:
    """Symbols of all lanes, (steps, lanes); below a lane's own count there is nothing of meaning."""
    windows, tables = _windows(data), _Tables(codes)
    mine = np.array([lane.stream for lane in lanes])
    shift, base = tables.shift[mine], tables.base[mine]
    place = np.array([lane.start for lane in lanes], np.int64)
    counts = np.array([lane.size for lane in lanes])
    out = np.empty((counts[0], len(lanes)), np.uint16)
    steps, active = np.arange(counts[0]), np.searchsorted(-counts, -np.arange(counts[0]))
    for step, n in zip(steps, active, strict=True):
        here = place[:n]
        # Beyond the end there are zeros; a lane that runs on is found out below.
        window = windows.take(here >> 3, mode="clip") << (here & 7).astype(np.uint32)
        found = tables.entries.take((window >> shift[:n]) + base[:n])
        if tables.has_long:
            tables.search(found, window, mine[:n])
        out[step, :n] = found >> 8
        here += found & 255
    left = np.array([lane.end for lane in lanes]) - place
    if np.any((left < 0) | (left > [lane.spare for lane in lanes])):
        raise CheckpointError("A lane's words do not end where the lane ends; the file is damaged.")
    return out


def _windows(data: bytes) -> NDArray[np.uint32]:
    """The 32 bits that begin at each byte."""
    padded = np.frombuffer(data + bytes(8), np.uint8).astype(np.uint32)
    joined = padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]
    return np.asarray(joined, np.uint32)


class _Tables:
    """The look-up tables of several codes, one behind the other: entry = symbol << 8 | length."""

    def __init__(self, codes: Sequence[Code]) -> None:
        longest = [int(code.lengths.max(initial=1)) for code in codes]
        widths = np.minimum(longest, TABLE_BITS)
        self.shift = (32 - widths).astype(np.uint32)
        self.base = (np.cumsum(1 << widths) - (1 << widths)).astype(np.uint32)
        self.has_long = max(longest) > TABLE_BITS
        self.sorted = [_sorted(code) for code in codes]
        self.entries = np.concatenate(
            [
                _table(ends, entries, int(width))
                for (ends, entries), width in zip(self.sorted, widths, strict=True)
            ]
        )

    def search(self, found: NDArray[np.uint32], window: NDArray[np.uint32], mine: NDArray[np.int64]) -> None:
        """Fill in the words that are longer than the table's index: the first that ends behind the window."""
        missing = np.flatnonzero((found & 255) == 0)
        for number in np.unique(mine[missing]):
            here = missing[mine[missing] == number]
            ends, entries = self.sorted[number]
            at = np.searchsorted(ends, window[here] >> np.uint32(32 - MAX_LENGTH), side="right")
            found[here] = entries.take(at, mode="clip")


def _sorted(code: Code) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Where each word ends, in units of 2**-MAX_LENGTH, and its entry, in the order of the words."""
    order = np.argsort(code.lengths, kind="stable")[np.count_nonzero(code.lengths == 0) :]
    lengths = code.lengths[order].astype(np.int64)
    entries = (order.astype(np.uint32) << np.uint32(8)) | lengths.astype(np.uint32)
    if not len(order):
        return np.zeros(0, np.int64), np.zeros(1, np.uint32)
    return np.cumsum(np.int64(1) << (MAX_LENGTH - lengths)), entries


def _table(ends: NDArray[np.int64], entries: NDArray[np.uint32], width: int) -> NDArray[np.uint32]:
    """Every window of `width` bits: the entry of the word it begins with, 0 if it is not all there."""
    table = np.zeros(1 << width, np.uint32)
    short = (entries & 255) <= width
    if not len(ends):
        return table
    repeats = np.int64(1) << (width - (entries[short] & 255).astype(np.int64))
    filled = np.repeat(entries[short], repeats)
    table[: len(filled)] = filled
    return table

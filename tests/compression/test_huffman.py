"""Huffman codes against heapq and constriction; streams of lanes against a reader that goes bit by bit."""

import heapq
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.compression import bits, lanes
from quantlib.compression.huffman import MAX_LENGTH, Code, code_lengths, entropy_bits
from quantlib.errors import CheckpointError, ConfigError


def brute_force(counts):
    """Huffman's cost as everyone writes it: the two smallest become one, and their sum is paid."""
    heap = [count for count in counts if count]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    cost = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        cost += both
        heapq.heappush(heap, both)
    return cost


def fibonacci(n):
    counts = [1, 1]
    while len(counts) < n:
        counts.append(counts[-1] + counts[-2])
    return counts


def read_slowly(stream):
    """The symbols by walking through a string of zeros and ones, word by word."""
    text = "".join(f"{byte:08b}" for byte in stream.data)
    words = {stream.code.word(symbol): symbol for symbol in np.flatnonzero(stream.code.lengths).tolist()}
    found, place = [], 0
    while len(found) < stream.size:
        length = next(n for n in range(1, MAX_LENGTH + 1) if text[place : place + n] in words)
        found.append(words[text[place : place + length]])
        place += length
    return found


COUNTS = st.lists(st.integers(0, 1000), min_size=0, max_size=60)


@settings(deadline=None, max_examples=200)
@given(COUNTS)
def test_cost_is_that_of_heapq_and_kraft_is_full(counts):
    lengths = code_lengths(np.array(counts, int), limit=64)
    assert int((lengths * np.array(counts, int)).sum()) == brute_force(counts)
    used = lengths[lengths > 0].tolist()
    assert [c > 0 for c in counts] == (lengths > 0).tolist()
    if len(used) > 1:
        assert sum(Fraction(1, 2**length) for length in used) == 1


@pytest.mark.parametrize("n", [2, 3, 20, 40, 60])
def test_fibonacci_counts_make_the_longest_words(n):
    counts = fibonacci(n)
    lengths = code_lengths(counts, limit=n)
    assert sorted(lengths.tolist()) == [*range(1, n), n - 1]
    assert int((lengths.astype(object) * np.array(counts, object)).sum()) == brute_force(counts)
    limited = code_lengths(counts)
    assert limited.max() <= MAX_LENGTH
    assert n > MAX_LENGTH + 1 or limited.tolist() == lengths.tolist()


def best_limited(counts, limit):
    """Least cost over all lists of lengths that fulfil Kraft's inequality, tried out one by one."""
    counts = sorted(counts, reverse=True)
    best = [float("inf")]

    def go(place, shortest, room, cost):
        if cost >= best[0]:
            return
        if place == len(counts):
            best[0] = cost
            return
        for length in range(shortest, limit + 1):
            left = room - Fraction(1, 2**length)
            if left >= 0:
                go(place + 1, length, left, cost + counts[place] * length)

    go(0, 1, Fraction(1), 0)
    return best[0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=7), st.integers(3, 5))
def test_limited_lengths_are_the_best_there_are(counts, limit):
    lengths = code_lengths(counts, limit)
    assert lengths.max() <= limit
    assert int((lengths * np.array(counts)).sum()) == best_limited(counts, limit)


def test_published_claim_of_three_words():
    counts = np.array([20, 10, 3])
    assert (counts * [2, 2, 4]).sum() == 72 and (counts * 2).sum() == 66
    code = Code.of(counts)
    assert [code.word(symbol) for symbol in range(3)] == ["0", "10", "11"]
    assert code.cost(counts) == 46 and entropy_bits(counts) == pytest.approx(42.05, abs=0.005)


def test_constriction_builds_a_tree_of_the_same_cost():
    huffman = pytest.importorskip("constriction").symbol.huffman
    symbol = pytest.importorskip("constriction").symbol
    rng = np.random.default_rng(0)
    for n in (2, 5, 33, 300):
        counts = rng.integers(1, 1000, n)
        encoder, tree = symbol.QueueEncoder(), huffman.EncoderHuffmanTree(counts.astype(float))
        theirs = []
        for each in range(n):
            encoder = symbol.QueueEncoder()
            encoder.encode_symbol(each, tree)
            theirs.append(encoder.get_compressed()[1])
        assert int((counts * theirs).sum()) == Code.of(counts).cost(counts)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 40), max_size=300))
def test_streams_come_back_and_a_slow_reader_agrees(symbols):
    code = Code.of(np.bincount(symbols, minlength=1) if symbols else np.zeros(3, int))
    stream = lanes.write(symbols, code)
    assert lanes.read([stream])[0].tolist() == symbols
    assert read_slowly(stream) == symbols
    assert len(stream.data) == -(-code.cost(np.bincount(symbols, minlength=1) if symbols else [0]) // 8)


def skewed(name):
    rng = np.random.default_rng(1)
    if name == "empty":
        return np.zeros(0, int)
    if name == "one symbol":
        return np.full(10_000, 7)
    if name == "two symbols":
        return (rng.random(20_000) < 0.01).astype(int)
    if name == "2^16 symbols":
        return rng.permutation(np.r_[np.arange(1 << 16), rng.integers(0, 1 << 16, 30_000)])
    counts = fibonacci(27)  # words up to 24 bits after limiting, of 26 without
    return rng.permutation(np.repeat(np.arange(27), counts))[:200_000]


@pytest.mark.parametrize("name", ["empty", "one symbol", "two symbols", "2^16 symbols", "Fibonacci"])
def test_alphabets_of_every_shape(name):
    symbols = skewed(name)
    counts = np.bincount(symbols, minlength=1)
    code = Code.of(counts)
    back, used = Code.unpacked(code.packed() + b"rest", len(code.lengths))
    assert used == len(code.packed())
    assert np.array_equal(back.words, code.words[: len(back.words)])
    stream = lanes.write(symbols, code)
    assert np.array_equal(lanes.read([stream._replace(code=back)])[0], symbols)
    assert entropy_bits(counts) <= code.cost(counts) <= entropy_bits(counts) + max(len(symbols), 1)


def test_many_streams_of_different_codes_at_once():
    rng = np.random.default_rng(2)
    parts = [
        np.minimum(rng.geometric(p, n) - 1, 999) for p, n in ((0.5, 9000), (0.01, 4096), (0.9, 1), (0.2, 0))
    ]
    streams = [lanes.write(part, Code.of(np.bincount(part, minlength=1))) for part in parts]
    assert [len(stream.lane_bits) for stream in streams] == [2, 0, 0, 0]
    for part, back in zip(parts, lanes.read(streams), strict=True):
        assert np.array_equal(part, back)


def test_damage_is_found():
    symbols = np.random.default_rng(3).integers(0, 5, 9000)
    stream = lanes.write(symbols, Code.of(np.bincount(symbols)))
    half = stream._replace(data=stream.data[: len(stream.data) // 2])
    moved = stream._replace(lane_bits=stream.lane_bits + 1)
    outside = stream._replace(lane_bits=stream.lane_bits * 1000)
    backwards = stream._replace(lane_bits=-stream.lane_bits)
    huge = stream._replace(size=10**15)
    longer = stream._replace(data=stream.data + b"\0")
    early = stream._replace(lane_bits=stream.lane_bits // 8 * 8 - 8)
    for broken in (half, moved, outside, backwards, huge, longer, early):
        with pytest.raises(CheckpointError, match="damaged"):
            lanes.read([broken])
    for lengths in ([1, 1, 1], [MAX_LENGTH + 1], [200]):
        with pytest.raises(CheckpointError, match="damaged"):
            Code.from_lengths(lengths)
    with pytest.raises(CheckpointError, match="damaged"):
        Code.unpacked(b"\xff", 3)


def test_wrong_use_is_named():
    with pytest.raises(ConfigError, match="raise the limit"):
        code_lengths(np.ones(9, int), limit=3)
    for counts in ([-1, 2], [0.5, 1.0], [[1, 2]]):
        with pytest.raises(ConfigError, match="whole numbers"):
            code_lengths(counts)
    code = Code.of([1, 0, 1])
    for symbols in ([1], [3], [-1]):
        with pytest.raises(ConfigError, match="make the code from all symbols"):
            lanes.write(symbols, code)
    with pytest.raises(ConfigError, match="make the code"):
        code.cost([0, 1, 0])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 2**24 - 1), st.integers(1, 24)), max_size=60))
def test_bits_are_put_as_a_string_of_zeros_and_ones(pairs):
    words = [(word % 2**length, length) for word, length in pairs]
    text = "".join(f"{word:0{length}b}" for word, length in words)
    expected = int(text.ljust(-(-len(text) // 8) * 8, "0") or "0", 2).to_bytes(-(-len(text) // 8), "big")
    assert (
        bits.put(np.array([w for w, _ in words], np.uint32), np.array([n for _, n in words], int)) == expected
    )


@given(st.lists(st.integers(-40, 40), max_size=50))
def test_unary_and_zigzag_come_back(numbers):
    data = bits.put_unary(bits.zigzag(np.array(numbers, np.int64)))
    back, used = bits.get_unary(data + b"\x55", len(numbers))
    assert bits.unzigzag(back).tolist() == numbers and used == len(data)


@pytest.mark.slow
def test_decodes_at_least_fifty_megabytes_of_weights_a_second():
    import time

    symbols = np.clip(np.round(np.random.default_rng(4).normal(0, 3, 2_000_000)), -7, 8).astype(int) + 7
    stream = lanes.write(symbols, Code.of(np.bincount(symbols)))
    rates = []
    for _ in range(3):
        before = time.thread_time()
        lanes.read([stream])
        rates.append(4 * len(symbols) / 1e6 / (time.thread_time() - before))
    assert max(rates) > 50, rates


def test_symbols_beyond_the_alphabet_and_symbols_that_never_come():
    with pytest.raises(ConfigError, match="has no word"):
        Code.of([1, 2]).cost([1, 2, 3])
    assert Code.of([1, 2]).cost([1, 2, 0]) == 3
    code = Code.of([3, 1, 0])
    again, _ = Code.unpacked(code.packed(), 3)
    assert again.lengths.tolist() == code.lengths.tolist() == [1, 1, 0]

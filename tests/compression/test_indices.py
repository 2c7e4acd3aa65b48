"""Relative indices: the paper's figure, and the way back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlib.compression.indices import absolute, positions_of, relative, runs
from quantlib.errors import CheckpointError, ConfigError

PLACES = st.lists(st.integers(0, 600), unique=True, max_size=40).map(sorted)


def test_figure_two_of_the_paper():
    values = np.zeros(16)
    values[[1, 4, 15]] = 3.4, 0.9, 1.7
    gaps, filler = relative(np.flatnonzero(values), bits=3)
    assert absolute(gaps).tolist() == [1, 4, 12, 15] and filler.tolist() == [False, False, True, False]
    assert np.diff(absolute(gaps)).tolist() == [3, 8, 3]  # as printed there; the filler bridges 8
    assert values[absolute(gaps)].tolist() == [3.4, 0.9, 0.0, 1.7]


@given(PLACES, st.integers(1, 9))
def test_relative_comes_back_without_its_fillers(places, bits):
    gaps, filler = relative(places, bits)
    assert absolute(gaps)[~filler].tolist() == places
    assert len(gaps) == 0 or 0 <= gaps.min() <= gaps.max() < 2**bits
    needed = sum((b - a - 1) // 2**bits for a, b in zip([-1, *places], places, strict=False))
    assert filler.sum() == needed  # not one more than the gaps ask for


@given(PLACES, st.integers(1, 300))
def test_runs_come_back(places, span):
    assert positions_of(runs(places, span), span, 601).tolist() == places


def test_wrong_use_is_named():
    for places in ([3, 3], [4, 2], [-1, 2]):
        with pytest.raises(ConfigError, match="each larger"):
            runs(places, 8)
    for bits in (0, 17):
        with pytest.raises(ConfigError, match="1 to 16 bits"):
            relative([1], bits)
    with pytest.raises(CheckpointError, match="outside its layer"):
        positions_of([5], span=8, size=5)

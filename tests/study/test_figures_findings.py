"""Titles that state a finding, on made-up tables: a flipped sign or a swapped column would say otherwise."""

import pandas as pd
import pytest

from quantlib.study import results
from quantlib.study.figures import nb02, nb04, nb05, nb06, nb15
from tests.study.titles import title


def rows(entries, metric="drop", **columns):
    """Rows of {method: value} with an interval of half a point to each side."""
    return [
        results.row(method, metric, value, low=value - 0.5, high=value + 0.5, n=1000, **columns)
        for method, value in entries.items()
    ]


def test_02_says_what_min_max_loses_at_four_bits():
    table = []
    for granularity, lost in (("per_tensor", 14.0), ("per_channel", 2.0)):
        for bits in (8, 4):
            entries = {"minmax": lost if bits == 4 else 0.1, "mse": lost + 1}
            about = {"granularity": granularity, "grid": "symmetric", "split": "validation"}
            table += rows(entries, bits_weight=bits, **about)
    found = title(nb02.accuracy_by_bits(pd.DataFrame(table)))
    assert found == "At 4 bits min-max loses 2.0 points per channel, 14.0 per layer"


def test_04_tells_one_sided_tensors_from_the_others():
    table = []
    for layer, one_sided, gain in (("a", True, 6.0), ("b", True, 5.0), ("c", False, 1.5)):
        entries = {"symmetric": 30.0, "affine": 30.0 + gain}
        table += rows(entries, "sqnr_db", layer=layer, one_sided=one_sided, bits=8)
    found = title(nb04.gain(pd.DataFrame(table)))
    assert found == "5.5 dB behind a ReLU, 1.5 dB where values have both signs"


def test_05_names_the_range_that_keeps_more():
    table = []
    for bits, full, narrow in ((8, 0.1, 0.2), (3, 45.0, 16.0)):
        table += rows({"full_range": full, "narrow_range": narrow}, bits=bits, observer="minmax")
    assert title(nb05.accuracy(pd.DataFrame(table))) == (
        "At 3 bits and min-max, narrow range keeps 29 points more"
    )


def test_06_counts_a_cost_as_positive():
    table = []
    for layer, kind, before in (("a", "conv", 34.0), ("b", "add", 38.0)):
        entries = {"after_relu": 40.0, "before_relu": before, "before_and_after_relu": before - 1}
        table += rows(entries, "sqnr_db", layer=layer, kind=kind, bits_activation=8)
    found = title(nb06.cost_by_layer(pd.DataFrame(table)))
    assert found == "Before the ReLU costs 6.0 dB after a convolution, 2.0 dB after an add"


@pytest.mark.parametrize("gain, found", [
    (0.6, "The teacher helps: +0.60 points [+0.10, +1.10]"),
    (-0.28, "No measurable gain: -0.28 points [-0.78, +0.22]"),
    (-0.6, "The teacher harms: -0.60 points [-1.10, -0.10]"),
])  # fmt: skip
def test_15_gives_the_gain_of_the_taught(gain, found):
    table = rows({"distilled": gain}, "gain")
    for seed, (alone, taught) in enumerate(((90.0, 90.5), (91.0, 91.7))):
        about = {"parameters": 1, "seed": seed}
        table += [{**row, **about} for row in rows({"alone": alone, "distilled": taught}, "accuracy")]
    assert title(nb15.float_students(pd.DataFrame(table))) == found

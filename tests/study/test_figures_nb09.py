"""The figures of notebook 09 on made-up tables of full size, and what their titles read from them."""

import pandas as pd
import pytest

from quantlib.study import results
from quantlib.study.figures import nb09
from quantlib.study.ptq import SETTING, setting
from tests.study.titles import title

WIDTHS = (8, 6, 4, 2)


def lost(chosen):
    """Points lost: more per tensor, less with the ends at 8 bits, min-max worst."""
    of_width = {8: 0.0, 6: 0.4, 4: 2.0, 2: 30.0}
    factor = {"per_tensor": 1.5, "per_channel": 1.0}[chosen["granularity"]] * (
        0.5 if chosen["ends"] == "8" else 1
    )
    factor *= 0.5 if chosen["kind"] == "mixed" else 1
    factor *= 2 if chosen["observer_activation"] == "minmax" else 1
    return factor * (of_width[chosen["bits_weight"]] + 2 * of_width[chosen["bits_activation"]])


@pytest.fixture
def sweep(tmp_path):
    """A recorded sweep, through its CSV and back."""
    settings = [setting(bits_weight=w, bits_activation=a) for w in WIDTHS for a in WIDTHS]
    same = [{"bits_weight": bits, "bits_activation": bits} for bits in WIDTHS]
    settings += [
        setting(**bits, **more) for bits in same for more in ({"granularity": "per_tensor"}, {"ends": "8"})
    ]
    settings += [setting(**bits, kind="mixed", ends=ends) for bits in same for ends in ("same", "8")]
    settings += [setting(bits_activation=bits, observer_activation="minmax") for bits in (8, 4)]
    numbers = {"bits_weight": 32, "bits_fc": 32, "bits_activation": 32, "draw": 0}
    plain = {**dict.fromkeys(SETTING, "none"), **numbers}
    rows = [results.row("fp32", "accuracy", 90.0, n=10_000, **plain)]
    for chosen in settings:
        drop = lost(chosen)
        rows += [
            results.row("ptq", name, value, value - 0.2, value + 0.2, 10_000, **chosen)
            for name, value in (("accuracy", 90 - drop), ("drop", drop))
        ]
    results.write_table(tmp_path / "sweep.csv", pd.DataFrame(rows))
    return pd.read_csv(tmp_path / "sweep.csv")


def test_part_takes_what_it_is_told(sweep):
    assert len(nb09.part(sweep)) == 16 and len(nb09.part(sweep, ends="8")) == 4
    assert len(nb09.part(sweep, "accuracy", ends=None, granularity=None)) == 24
    assert len(nb09.part(sweep, kind="mixed", ends=None)) == 8
    assert set(nb09.part(sweep, bits_weight=4)["bits_weight"]) == {4}


def test_titles_say_what_the_table_says(sweep):
    assert title(nb09.accuracy_over_the_grid(sweep)).startswith(
        "3 of 16 pairs of widths stay within one point"
    )
    assert "weights alone lose 2.0 points, activations 4.0, both 6.0" in title(
        nb09.drop_apart_and_together(sweep)
    )
    ways = title(nb09.drop_by_convention(sweep))
    assert "W4A4 loses 6.0 points (9.0 per tensor), 3.0 with its ends at 8 bits,\n3.0 with adds" in ways
    assert ways.endswith("1.5 with both")
    assert "ACIQ loses 4.0 points, min-max 8.0" in title(nb09.drop_by_observer(sweep))


def test_ranked_layers():
    rises = {"a": 1.0, "b": 0.5, "c": 0.3, "d": 0.2}
    rows = [
        results.row("layer_alone", "loss_rise", value, n=300, layer=name, bits_weight=2)
        for name, value in rises.items()
    ]
    rows += [
        results.row("layer_alone", "output_sqnr_db", 1 / value, n=300, layer=name, bits_weight=2)
        for name, value in rises.items()
    ]
    assert title(nb09.ranked_layers(pd.DataFrame(rows))).startswith(
        "Three layers make 90 % of the loss at 2 bits"
    )

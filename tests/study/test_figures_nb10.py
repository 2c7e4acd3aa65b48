"""The figures of notebook 10 on made-up tables, and what their titles read from them."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from quantlib.study import plots, results
from quantlib.study.figures import nb10
from quantlib.study.rescue_methods import METHODS, TARGETS, columns_of, rescue_setting
from tests.study.titles import title


def rows(method, values, **columns):
    """Rows of several metrics; a drop has an interval."""
    made = []
    for metric, value in values.items():
        interval = (value - 0.2, value + 0.2) if metric == "drop" else (float("nan"),) * 2
        made.append(results.row(method, metric, value, *interval, 10_000, **columns))
    return made


def test_every_method_has_a_look():
    assert all(plots.look(name).label for name in METHODS)


def test_equalization():
    losses = {(1.0, "nearest"): 1.0, (1.0, "equalization"): 1.0}
    losses |= {(10.0, "nearest"): 20.0, (10.0, "equalization"): 2.0}
    table = []
    for bits in (8, 4):
        for (spread, method), lost in losses.items():
            columns = columns_of(rescue_setting(bits_weight=bits, bits_activation=bits, spread=spread))
            table += rows(method, {"drop": lost}, **columns)
    wanted = "W4A4, badly scaled: 20.0 points lost, 2.0 after equalization"
    assert title(nb10.badly_scaled(pd.DataFrame(table))) == wanted


def test_ladder():
    table = []
    for place, method in enumerate(METHODS):
        for bits in (4, 2):
            columns = columns_of(rescue_setting(bits_weight=bits))
            values = {"drop": 30.0 - place if bits == 2 else 1.0, "minutes": float(place), "accuracy": 60.0}
            values["accuracy_validation"] = {"nearest_narrow": 70.0, "brecq": 80.0}.get(method, 60.0)
            table += rows(method, values, **columns)
    found, places = title(nb10.ladder(pd.DataFrame(table))), list(METHODS)
    assert found.startswith(f"W2A4: nearest rounding loses {30 - places.index('nearest_narrow'):.1f} points")
    assert found.endswith(f" {30 - places.index('brecq'):.1f}")  # not the last one, which loses least


def test_units_and_allocation():
    table = []
    for name, ratio in (("conv1", 2.0), ("layer1.0", 8.0)):
        values = {"error_before": 0.1 * ratio, "error_after": 0.1, "seconds": 1.0}
        table += rows("brecq", values, unit=name, target="w2a4", kind="mixed")
    assert "W2A4: errors of blocks fall 4.00-fold" in title(nb10.error_of_units(pd.DataFrame(table)))
    table = []
    for part in ("weight", "activation"):
        for layer, bits, count in (("a", 8.0, 10), ("b", 3.0, 40)):
            table += rows(part, {"bits": bits}, layer=layer, count=count)
    figure = nb10.bits_by_layer(pd.DataFrame(table))
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]
    assert titles[0] == "weights: 4.00 bits on average, 3 to 8"
    plt.close(figure)


@pytest.mark.parametrize(("factor", "met", "sure"), [(0.4, 7, 4), (2.0, 0, 0)])  # intervals of +- 0.2
def test_targets(factor, met, sure):
    table = []
    for name, (columns, wanted) in TARGETS.items():
        for kind in ("mixed", "integer"):
            setting = columns_of(rescue_setting(**{**columns, "kind": kind}))
            for role, lost in (("nearest", 30.0), ("rescued", 12.0 if wanted != wanted else factor * wanted)):
                table += rows("brecq", {"drop": lost}, target=name, role=role, wanted=wanted, **setting)
    wanted = f"{met} of 7 goals met, {sure} of them with the whole interval"
    assert title(nb10.targets(pd.DataFrame(table))) == wanted

"""Figures: byte-stable, labels apart, one look a method; the registry draws from results alone."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlib.errors import StudyError
from quantlib.study import figures, plots, results
from quantlib.study.figures.registry import FIGURES, CourseFigure


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=12).map(sorted))
def test_spread_keeps_order_and_distance(heights):
    placed = plots.spread(heights, 12.0)
    assert len(placed) == len(heights)
    assert all(b - a >= 12.0 - 1e-6 for a, b in zip(placed, placed[1:], strict=False))
    if all(b - a >= 12.0 for a, b in zip(heights, heights[1:], strict=False)):
        np.testing.assert_allclose(placed, heights, atol=1e-9)  # nothing moves that need not


def table():
    rows = [(m, b, 90 - 40 / b - k, 88 - 40 / b, 91 - 40 / b) for k, m in enumerate(("mse", "minmax", "fp32"))
            for b in (2, 4, 8)]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "bits", "value", "low", "high"])


def everything():
    figure, axes = plots.canvas("All helpers", "bits", "accuracy (%)", nrows=2, ncols=2)
    plots.lines_with_intervals(axes[0, 0], table(), "bits")
    plots.bars_with_intervals(axes[0, 1], table().iloc[:3])
    rng = np.random.default_rng(0)
    plots.histograms(axes[1, 0], {"weights": rng.normal(size=500), "activations": rng.exponential(size=500)})
    axes[1, 1].set(xlabel="across", ylabel="down")
    plots.heatmap(axes[1, 1], np.arange(6.0).reshape(2, 3), ["a", "b"], ["x", "y", "z"], unit="dB")
    assert (axes[1, 1].get_xlabel(), axes[1, 1].get_ylabel()) == ("across", "down")
    plots.caption(figure, "n = 3")
    return figure


def test_the_same_drawing_has_the_same_bytes_and_names_no_software(tmp_path):
    for name in "ab":
        plots.save(everything(), tmp_path / f"{name}.png")
    first, second = (tmp_path / "a.png").read_bytes(), (tmp_path / "b.png").read_bytes()
    assert first == second and b"matplotlib" not in first.lower() and b"tEXt" not in first
    assert first[16:24] == (715).to_bytes(4, "big") + (385).to_bytes(4, "big")  # 6.5 x 3.5 in at 110 dpi


def test_labels_at_line_ends_do_not_overlap():
    figure, ax = plots.canvas()
    methods = ["minmax", "percentile", "histogram", "mse", "entropy", "aciq"]
    ax.set_ylim(0, 100)
    ax.set_xlim(0, 1)
    plots.label_lines(ax, {method: (1.0, 50 + 0.1 * place) for place, method in enumerate(methods)})
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert len(boxes) == 6 and all(low.y1 <= high.y0 + 1 for low, high in zip(boxes, boxes[1:], strict=False))


def test_every_method_has_one_look_and_an_unknown_one_a_sentence():
    assert plots.colour("fp32") == "#7f7f7f"
    observers = [
        "minmax",
        "moving_average",
        "percentile",
        "histogram",
        "mse",
        "entropy",
        "aciq",
        "fp32",
        "optimum",
    ]
    assert len({plots.colour(name) for name in observers}) == len(observers)
    with pytest.raises(StudyError, match="No colour is set for the method 'magic'"):
        plots.look("magic")


@pytest.fixture
def registered(small_course, monkeypatch):
    monkeypatch.setattr(figures.registry, "load_all", lambda: FIGURES)
    monkeypatch.setattr(figures.registry, "FIGURES", {})
    monkeypatch.setitem(globals(), "FIGURES", figures.registry.FIGURES)

    def draw(things):
        figure, ax = plots.canvas("Finding")
        plots.bars_with_intervals(ax, things)
        return figure

    figures.registry.FIGURES["01_things"] = CourseFigure("01_things", ("01_things",), draw)
    return small_course


def test_registry_draws_from_results_else_from_this_run(registered):
    with pytest.raises(StudyError, match="did you mean '01_things'"):
        figures.draw("01_thing")
    with pytest.raises(StudyError, match="01_things.csv is not recorded yet"):
        figures.draw("01_things")
    assert "quick run" in figures.draw("01_things", live={"01_things": table()}).get_supxlabel()
    assert figures.redraw() == ([], ["01_things"])
    results.record("01_things", table(), {}, "full")
    assert figures.draw("01_things").get_supxlabel() == ""
    assert figures.redraw() == (["01_things"], [])
    before = (registered / "figures/01_things.png").read_bytes()
    figures.redraw()
    assert (registered / "figures/01_things.png").read_bytes() == before

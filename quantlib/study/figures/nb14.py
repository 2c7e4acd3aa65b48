"""Figures of notebook 14: what each part of the file weighs, and points lost over how many times smaller."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure
from quantlib.study.palette import BLUE

PAPER = {"AlexNet's convolutions": 10.95, "VGG-16's": 13.7}
"""Times smaller in the paper, convolutions alone (from its tables 4 and 5)."""

LEFT = {"resnet50_pruned90": "a tenth left", "resnet50_pruned95": "a twentieth left"}
"""What was left of the networks that were pruned and retrained."""
PARTS = {"symbols": "which value", "places": "where"}
"""What the two largest parts of a file say."""


@figure("14_frontier", "14_frontier")
def drop_over_ratio(frontier: pd.DataFrame) -> Figure:
    """Points lost on the test images over how many times smaller the file is, by method.

    The file that the title names is chosen on validation images: the smallest that loses at most half a point
    there.
    """
    rows = frontier[frontier["split"] == "test"]
    chosen = frontier[(frontier["split"] == "validation") & (frontier["value"] <= 0.5)]
    title = "Every file loses more than half a point on validation images"
    if len(chosen):
        best = chosen.loc[chosen["ratio"].idxmax()]
        same = rows[(rows["method"] == best["method"]) & (rows["start"] == best["start"])]
        lost = same.loc[(same["ratio"] - best["ratio"]).abs().idxmin(), "value"]
        title = f"Chosen on validation images: {best['ratio']:.0f} times smaller, {lost:+.2f} points lost"
    made, ax = plots.canvas(
        title,
        "times smaller than float32 (file on disk)", "points lost against FP32",
    )  # fmt: skip
    ax.set_xscale("log")
    ends = {}
    retrained = rows["start"].where(rows["method"] == "price_pruned", "")  # each network a line of its own
    for (method, _), part in rows.groupby(["method", retrained], sort=False):
        part = part.sort_values("ratio")
        last = plots.line_with_bars(ax, part["ratio"], part, plots.look(str(method)), linewidth=1.2)
        ends[str(method)] = (float(part["ratio"].iloc[-1]), last)
        if method == "price_pruned":
            first = part.iloc[0]
            ax.annotate(
                LEFT.get(first["start"], first["start"]), (first["ratio"], first["value"]), xytext=(0, 8),
                textcoords="offset points", ha="right", fontsize=7.5, color=plots.colour("price_pruned"),
            )  # fmt: skip
    _finish(ax, rows, ends)
    n = int(rows["n"].iloc[0])
    plots.caption(
        made,
        f"n = {n:,} test images, paired, 95 % intervals; scale linear up to 2; "
        "dotted: the paper's convolutions",
    )
    return made


def _finish(ax: Axes, rows: pd.DataFrame, ends: dict[str, tuple[float, float]]) -> None:
    """Zero line, the paper's ratios, ticks in plain numbers, names."""
    ax.axhline(0, color=plots.colour("fp32"), linewidth=1, linestyle="--", zorder=1)
    for ratio in PAPER.values():
        ax.axvline(ratio, color=plots.colour("fp32"), linewidth=1, linestyle=":", zorder=1)
    ax.set_yscale("symlog", linthresh=2)
    heights = (-2, -1, 0, 1, 2, 5, 10, 20, 50, 80)
    ax.set_yticks(heights, [str(height) for height in heights])
    low, high = float(rows["low"].min()), float(rows["high"].max())
    ax.set_ylim(min(-1.0, 1.15 * low), max(2.0, 1.8 * high))
    ax.set_xlim(0.8 * min(10.0, rows["ratio"].min()), 2.2 * max(20.0, rows["ratio"].max()))
    least, most = ax.get_xlim()
    ticks = [ratio for ratio in (2, 5, 10, 20, 35, 50, 80, 150) if least < ratio < most]
    ax.set_xticks(ticks, [str(ratio) for ratio in ticks])
    ax.minorticks_off()
    ax.invert_yaxis()
    plots.label_lines(ax, ends)


@figure("14_file", "14_file")
def parts_of_the_file(file: pd.DataFrame) -> Figure:
    """Kilobytes of each part of the file."""
    rows = file[file["method"] == "file"].sort_values("value", ascending=False).reset_index(drop=True)
    whole = rows["value"].sum()
    places = np.arange(len(rows))[::-1]
    at = rows.set_index("part")["value"]
    made, ax = plots.canvas(
        f"{whole:.2f} MB: {at['places'] / whole:.0%} say where a weight is left, "
        f"{at['symbols'] / whole:.0%} which it is",
        "kilobytes", figsize=(6.5, 1.0 + 0.36 * len(rows)),
    )  # fmt: skip
    ax.barh(places, 1000 * rows["value"], color=BLUE, height=0.62)
    for place, value in zip(places, 1000 * rows["value"], strict=True):
        ax.annotate(f"{value:.1f}", (value, place), xytext=(4, 0), textcoords="offset points", va="center")
    ax.set_yticks(places, [PARTS.get(part, part) for part in rows["part"]])
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.12)
    plots.caption(made, "ResNet-50, 90 % pruned, 16 shared values a layer")
    return made

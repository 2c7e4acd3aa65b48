"""Accuracy lost, over bits and by method: the drawings that several notebooks share."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlib.study import plots


def drop_lines(ax: Axes, drops: pd.DataFrame, x: str, room: float = 0.45, sway: float = 0.05) -> None:
    """One line a method over the bits in column `x`, most bits left, with paired 95 % intervals.

    drops: columns method, `x`, value, low, high in points. The methods stand side by side at each width so
    that their intervals can be told apart, `sway` of the width to each side; `room` is the share of the width
    kept for the names on the right.
    """
    bits = sorted(drops[x].unique(), reverse=True)
    methods = list(drops["method"].drop_duplicates())
    span = max(len(bits) - 1, 1)
    ax.hlines(0.0, -0.25, span * 1.05, color=plots.colour("fp32"), linewidth=1, linestyle="--", zorder=1)
    ax.set_xlim(-0.25, span * (1 + room) + 0.25)
    ax.set_xticks(range(len(bits)), [f"{int(width)}" for width in bits])
    ends = {}
    for method, shift in zip(methods, np.linspace(-sway, sway, len(methods)) * span, strict=True):
        part, face = drops[drops["method"] == method].set_index(x).loc[bits], plots.look(str(method))
        last = plots.line_with_bars(ax, np.arange(len(bits)) + shift, part, face, linewidth=1.2, zorder=3)
        ends[str(method)] = (span * 1.05, last)
    ax.margins(y=0.08)
    ax.invert_yaxis()
    plots.label_lines(ax, ends)


def drop_points(drops: pd.DataFrame, title: str, note: str = "") -> Figure:
    """A point with its paired interval for each row (method, value, low, high, n), minutes beside it."""
    table = drops.reset_index(drop=True)
    made, ax = plots.canvas(title, "points lost against FP32", figsize=(6.5, 1.2 + 0.36 * len(table)))
    places = np.arange(len(table))[::-1]
    for place, row in zip(places, table.itertuples(), strict=True):
        face = plots.look(str(row.method))
        ax.plot([row.low, row.high], [place, place], color=face.colour, linewidth=2)
        ax.plot(row.value, place, color=face.colour, marker=face.marker, markersize=7)
        text = f"{row.value:+.2f}" + (f", {row.minutes:.0f} min" if getattr(row, "minutes", 0) >= 0.5 else "")
        right = max(row.high, row.value)
        ax.annotate(text, (right, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
    ax.axvline(0, color=plots.colour("fp32"), linewidth=1)
    ax.set_yticks(places, [plots.look(str(name)).label for name in table["method"]])
    ax.set_ylim(-0.6, len(table) - 0.4)
    ax.margins(x=0.22)
    ax.grid(axis="y", visible=False)
    plots.caption(made, f"n = {int(table['n'].max()):,}, paired, 95 % intervals{note}")
    return made


def worse_than_fp32(accuracy: pd.DataFrame) -> Figure:
    """`drop_points` of what 8 bits cost, under a title that names the methods measurably worse than FP32."""
    drops = accuracy[accuracy["metric"] == "drop"]
    worse = [plots.look(str(name)).label for name in drops.loc[drops["low"] > 0, "method"]]
    return drop_points(drops, f"Measurably worse than FP32 at 8 bits: {', '.join(worse) or 'none'}")

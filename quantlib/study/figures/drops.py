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


def drop_points(table: pd.DataFrame) -> Figure:
    """A point and a paired 95 % interval for each method; table: columns method, value, low, high, n."""
    table = table.reset_index(drop=True)
    worse = [plots.look(str(name)).label for name in table.loc[table["low"] > 0, "method"]]
    made, ax = plots.canvas(
        f"Measurably worse than FP32 at 8 bits: {', '.join(worse) or 'none'}",
        "accuracy lost against FP32 (points; left of 0 is a gain)",
        figsize=(6.5, 1.2 + 0.4 * len(table)),
    )
    places = np.arange(len(table))[::-1]
    for place, row in zip(places, table.itertuples(), strict=True):
        face = plots.look(str(row.method))
        ax.plot([row.low, row.high], [place, place], color=face.colour, linewidth=2)
        ax.plot(row.value, place, color=face.colour, marker=face.marker, markersize=8)
        ax.annotate(
            f"{row.value:+.2f}", (row.value, place), xytext=(0, 8), textcoords="offset points",
            ha="center", fontsize=8.5,
        )  # fmt: skip
    ax.axvline(0, color=plots.colour("fp32"), linewidth=1)
    ax.set_yticks(places, [plots.look(str(name)).label for name in table["method"]])
    ax.set_ylim(-0.6, len(table) - 0.2)
    ax.grid(axis="y", visible=False)
    plots.caption(made, f"n = {int(table['n'].max()):,} test images, paired; 95 % bootstrap intervals")
    return made

"""Figures of notebook 15: students with and without a teacher."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure

FAR = 25
"""Points behind the best, beyond which a method is off the scale."""


def _accuracies(ax: Axes, table: pd.DataFrame, names: list[str]) -> None:
    """A row a method: each seed a marker with its interval, the mean over the seeds as a number.

    What lies more than FAR points behind the best is only named: it would press all others together.
    """
    places, best = np.arange(len(names))[::-1], table["value"].max()
    for place, name in zip(places, names, strict=True):
        found, face = table[table["arm"] == name].sort_values("seed"), plots.look(name)
        if found["value"].max() < best - FAR:
            text = f"{found['value'].mean():.2f}, far to the left"
            ax.annotate(text, (0.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
            continue
        shifts = np.linspace(0.14, -0.14, len(found)) if len(found) > 1 else [0.0]
        for shift, row in zip(shifts, found.itertuples(), strict=True):
            ax.plot([row.low, row.high], [place + shift] * 2, color=face.colour, linewidth=1.2)
            ax.plot(row.value, place + shift, color=face.colour, marker=face.marker, markersize=6)
        ax.annotate(
            f"{found['value'].mean():.2f}", (found["high"].max(), place), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=8.5,
        )  # fmt: skip
    ax.set_yticks(places, [plots.look(name).label for name in names])
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    ax.margins(x=0.1)


def _note(table: pd.DataFrame) -> str:
    return f"n = {int(table['n'].max()):,} test images; a marker is a seed, its line the 95 % interval"


@figure("15_students", "15_students")
def float_students(students: pd.DataFrame) -> Figure:
    """Accuracy of float32 students of equal epochs, alone and with a teacher."""
    table = students[students["metric"] == "accuracy"].assign(arm=lambda rows: rows["method"])
    names = list(table["arm"].drop_duplicates())
    gain = students[(students["metric"] == "gain") & (students["method"] == "distilled")].iloc[0]
    interval = f"{gain['value']:+.2f} points [{gain['low']:+.2f}, {gain['high']:+.2f}]"
    helps, harms = gain["low"] > 0, gain["high"] < 0
    found = "The teacher helps" if helps else "The teacher harms" if harms else "No measurable gain"
    made, ax = plots.canvas(
        f"{found}: {interval}",
        "accuracy of the ResNet-20 (%)", figsize=(6.5, 1.2 + 0.42 * len(names)),
    )  # fmt: skip
    _accuracies(ax, table, names)
    plots.caption(
        made,
        f"{_note(table)}.\nThe number is the mean of the seeds. An arm of one seed has the first:\n"
        "compare it with the uppermost marker of the others.",
    )
    return made


@figure("15_low_bit", "15_low_bit")
def low_bit_students(low_bit: pd.DataFrame) -> Figure:
    """Accuracy of low-bit students by scheme, a panel for each pair of widths."""
    table = low_bit[low_bit["metric"] == "accuracy"]
    table = table.assign(width=table["method"].str[:4], arm=table["method"].str[5:])
    widths = list(table["width"].drop_duplicates())
    names = {width: list(table.loc[table["width"] == width, "arm"].drop_duplicates()) for width in widths}
    at = table[table["width"] == widths[0]].groupby("arm")["value"].mean()
    made, axes = plots.canvas(
        f"{widths[0]}: rounding keeps {at['rounded']:.1f} %, training {at['alone']:.1f}, "
        f"with a teacher {at['scheme C']:.1f}",
        nrows=len(widths), squeeze=False,
        figsize=(6.5, 1.4 + 0.4 * sum(map(len, names.values()))),
        height_ratios=[len(names[width]) for width in widths],
    )  # fmt: skip
    for ax, width in zip(axes[:, 0], widths, strict=True):
        _accuracies(ax, table[table["width"] == width], names[width])
        ax.set_title(width, fontsize=9)
    axes[-1, 0].set_xlabel("accuracy of the ResNet-20 (%)")
    plots.caption(made, _note(table))
    return made

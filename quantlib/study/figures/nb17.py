"""Figures of notebook 17: what low rank keeps of a layer, and what it costs and saves in the network."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure
from quantlib.study.palette import GREY

SHARE = 0.4
"""Of the multiply-adds: the network that the title of 17_speed is about."""
RULES = ("energy", "uniform", "budget", "tuned")
"""The rules that choose ranks, in the order of the figure."""


def _write(ax: Axes, text: str, at: tuple[float, float], colour: str, shift: tuple[float, float]) -> None:
    """A label beside a point, moved by so many points of the page."""
    ax.annotate(
        text, at, xytext=shift, textcoords="offset points", color=colour, fontweight="bold", fontsize=9
    )


@figure("17_spectrum", "17_spectrum")
def energy_by_rank(spectrum: pd.DataFrame) -> Figure:
    """Share of the squares that the first ranks hold, of the weights and of the outputs of one layer."""
    layer = spectrum["layer"].iloc[0]
    rows = spectrum[spectrum["layer"] == layer].assign(share=lambda t: 100 * t["rank"] / t["rank"].max())
    first = rows[rows["value"] >= 90].groupby("method")["rank"].min()
    made, ax = plots.canvas(
        f"Nine tenths of the outputs need {first['outputs']} of {rows['rank'].max()} ranks, "
        f"of the weights {first['weights']}",
        "rank (% of the full rank)", "held of the sum of squares (%)",
    )  # fmt: skip
    ax.axhline(90, color=GREY, linewidth=0.8, linestyle="--")
    for method, part in rows.groupby("method"):
        face = plots.look(str(method))
        ax.plot(part["share"], part["value"], color=face.colour)
        middle = part.iloc[(part["value"] - (60 if method == "weights" else 78)).abs().argmin()]
        _write(ax, face.label, (middle["share"], middle["value"]), face.colour, (8, -6))
    ax.set_ylim(0, 102)
    plots.caption(made, f"{layer}; outputs on {int(rows['n'].max())} calibration images")
    return made


@figure("17_methods", "17_methods")
def error_by_method(methods: pd.DataFrame) -> Figure:
    """SQNR of a 3 x 3 layer's outputs at the same multiply-adds; median over the layers."""
    table = methods.groupby(["method", "share"], sort=False)["value"].median().reset_index()
    table = table.assign(percent=100 * table["share"], low=np.nan, high=np.nan)
    half = table[table["share"] == 0.5].set_index("method")["value"]
    best = half.idxmax()
    made, ax = plots.canvas(
        f"At half the multiply-adds {plots.look(str(best)).label} is best with {half[best]:.0f} dB;\n"
        f"looking at the inputs brings channel SVD {half['channel'] - half['channel_plain']:.0f} dB",
        "multiply-adds left (%)", "SQNR of the outputs (dB)",
    )  # fmt: skip
    ax.set_xlim(table["percent"].min() - 3, table["percent"].max() * 1.45)
    ax.set_xticks(sorted(table["percent"].unique()))
    plots.lines_with_intervals(ax, table, "percent")
    layers = methods["layer"].nunique()
    plots.caption(made, f"median of {layers} 3x3 layers" if layers > 1 else str(methods["layer"].iloc[0]))
    return made


@figure("17_accuracy", "17_accuracy")
def drop_by_share(accuracy: pd.DataFrame) -> Figure:
    """Points lost against the share of multiply-adds, by the rule that chose the ranks."""
    table = accuracy[(accuracy["metric"] == "drop") & accuracy["method"].isin(RULES)].copy()
    table["percent"] = 100 * table["macs"]
    near = {
        name: part.iloc[(part["macs"] - 0.5).abs().argmin()]
        for name, part in table.groupby("method")
        if name != "tuned"
    }
    losses = [f"{plots.look(name).label} {near[name]['value']:.1f}" for name in RULES[::-1] if name in near]
    title = "Points lost near half the multiply-adds:\n" + ", ".join(losses)
    made, ax = plots.canvas(title, "multiply-adds left (%)", "accuracy lost (points)")
    ends = {}
    for name in [rule for rule in RULES if rule in set(table["method"])]:
        part, face = table[table["method"] == name].sort_values("percent"), plots.look(name)
        last = plots.line_with_bars(ax, part["percent"], part, face)
        ends[name] = (float(part["percent"].iloc[-1]), last)
    if "tuned" in ends:  # one point, above the line of the untuned
        at, face = table[table["method"] == "tuned"].iloc[0], plots.look("tuned")
        del ends["tuned"]
        _write(ax, face.label, (at["percent"], at["low"]), face.colour, (-40, 6))
    ax.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
    ax.set_yscale("symlog", linthresh=1)
    ax.set_yticks([-1, 0, 1, 3, 10, 30, 80], ["-1", "0", "1", "3", "10", "30", "80"])
    ax.set_xlim(right=max(x for x, _ in ends.values()) * 1.35)
    left, right = ax.get_xlim()
    ax.set_xticks([tick for tick in ax.get_xticks() if left <= tick <= min(right, 100)])
    ax.invert_yaxis()
    plots.label_lines(ax, ends)
    counts = sorted({int(n) for n in table["n"]})
    n = " or ".join(f"{count:,}" for count in counts)
    plots.caption(made, f"n = {n} test images, paired; 95 % intervals; scale linear up to 1")
    return made


@figure("17_speed", "17_speed")
def time_against_arithmetic(speed: pd.DataFrame) -> Figure:
    """Measured speed-up against the share of multiply-adds, beside what the arithmetic promises."""
    table = speed[(speed["metric"] == "speedup") & (speed["method"] == "lowrank")].copy()
    table["percent"] = 100 * table["macs"]
    large = int(table["batch"].max())
    part = table[table["batch"] == large]
    at = part.loc[(part["macs"] - SHARE).abs().idxmin()]
    made, ax = plots.canvas(
        f"{at['percent']:.0f} % of the multiply-adds run {at['value']:.2f} times as fast at batch {large}, "
        f"not {1 / at['macs']:.2f} times",
        "multiply-adds left (%)", "times as fast as FP32 folded",
    )  # fmt: skip
    grid = np.linspace(table["percent"].min(), 100, 100)
    ax.plot(grid, 100 / grid, color=GREY, linestyle="--", linewidth=1)
    _write(ax, "arithmetic", (grid[10], 100 / grid[10]), GREY, (6, 4))
    for (size, part), face in zip(
        table.groupby("batch"), map(plots.look, ("channel", "spatial")), strict=False
    ):
        part = part.sort_values("percent")
        plots.line_with_bars(ax, part["percent"], part, face)
        first = part.iloc[0]  # where the lines are farthest apart
        _write(ax, f"batch {int(size)}", (first["percent"], first["value"]), face.colour, (-50, -3))
    ax.set_xlim(table["percent"].min() - 15, 105)
    rounds = plots.counted(int(table["n"].max()), "round")
    plots.caption(made, f"median, lowest and highest of {rounds} in turn")
    return made

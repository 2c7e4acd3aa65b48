"""Figures of notebook 01: the network, its training, its accuracy and its numbers."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure
from quantlib.study.palette import BLUE, GREY, ORANGE, look

SMOOTHED = 0.5003
"""The least cross-entropy with labels smoothed by 0.1: the entropy of 0.91 and nine times 0.01."""


@figure("01_network", "01_network")
def network(table: pd.DataFrame) -> Figure:
    """Share of the weights and of the multiplications of every stage."""
    wide = table.pivot(index="method", columns="metric", values="value").loc[table["method"].unique()]
    weights, work = wide["weights_share"], wide["macs_share"]
    title = (
        f"{weights.idxmax()} holds {weights.max():.0f} % of the weights; {work.idxmax()} does the most work"
    )
    drawn, ax = plots.canvas(title, ylabel="share (%)", figsize=(6.5, 2.6))
    places = np.arange(len(wide))
    for shift, column, paint, name in (
        (-0.2, weights, BLUE, "weights"),
        (0.2, work, ORANGE, "multiplications"),
    ):
        bars = ax.bar(places + shift, column, 0.38, color=paint, label=name)
        ax.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    ax.set_xticks(places, wide.index)
    ax.legend(loc="upper left")
    ax.margins(y=0.1)
    plots.caption(drawn, "ResNet-50 for 32x32 images; counted, not measured")
    return drawn


@figure("01_training", "01_training_log_resnet50")
def training(log: pd.DataFrame) -> Figure:
    """Validation error and training loss of the ResNet-50, epoch by epoch."""
    return _epochs(log, ", with label smoothing (dashed: the least possible)", SMOOTHED)


@figure("01_training_resnet20", "01_training_log_resnet20")
def training_resnet20(log: pd.DataFrame) -> Figure:
    """The same for the ResNet-20."""
    return _epochs(log)


def _epochs(log: pd.DataFrame, remark: str = "", least: float | None = None) -> Figure:
    """Validation error and training loss, epoch by epoch; a line where the images become larger."""
    error = 100 - log["validation_accuracy"]
    title = f"The validation error is lowest in epoch {log.loc[error.idxmin(), 'epoch']}: {error.min():.2f} %"
    drawn, (ax, below) = plots.canvas(title, nrows=2, sharex=True, figsize=(6.5, 2.9))
    line: dict[str, Any] = {"marker": "o", "markersize": 2}
    ax.plot(log["epoch"], error, color=BLUE, **line)
    ax.set_yscale("log")  # the last points of a hundred are the ones that cost the epochs
    ax.set_yticks([value for value in (5, 10, 20, 50) if value < 1.1 * error.max()])
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")
    ax.set_ylabel("error (%)")
    below.plot(log["epoch"], log["loss"], color=GREY, **line)
    if least is not None:
        below.axhline(least, color=GREY, linewidth=1, linestyle="--")
        below.set_yticks([0.5, 1, 2], ["0.5", "1", "2"])
    below.set_ylabel("loss (nats)")
    below.set_xlabel("epoch")
    for change in log[log["resolution"].diff() > 0].itertuples():
        for panel in (ax, below):
            panel.axvline(change.epoch - 0.5, color=ORANGE, linewidth=1)
        spot = (change.epoch - 0.5, ax.get_ylim()[1])
        ax.annotate(f"{change.resolution}x{change.resolution} pixels", spot, xytext=(4, -12),
                    textcoords="offset points", color=ORANGE, fontsize=8.5)  # fmt: skip
    plots.caption(drawn, f"error: averaged weights, n = 5,000 validation images; loss: in training{remark}")
    return drawn


@figure("01_classes", "01_accuracy")
def classes(table: pd.DataFrame) -> Figure:
    """Accuracy of every class with its Wilson interval, best on top."""
    rows = table[(table["metric"] == "accuracy") & (table["part"] != "all")].sort_values("value")
    whole = table[
        (table["metric"] == "accuracy") & (table["method"] == "fp32") & (table["part"] == "all")
    ].iloc[0]
    worst, best = rows.iloc[0], rows.iloc[-1]
    ends = [f"{row['part']} ({row['value']:.1f} %)" for row in (worst, best)]
    title = f"Hardest class: {ends[0]}; easiest: {ends[1]}"
    drawn, ax = plots.canvas(title, "accuracy (%)", "", figsize=(6.5, 3.0))
    ax.axvline(whole["value"], color="0.75", linewidth=1.2, zorder=1)
    ax.errorbar(
        rows["value"], rows["part"], xerr=plots.lengths(rows), fmt="o", color=look("fp32").colour, zorder=3
    )
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.annotate(
        "all", (whole["value"], -0.6), xytext=(3, 0), textcoords="offset points", color="0.45", fontsize=8.5
    )
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    each = f"{rows['n'].min()} to {rows['n'].max()}" if rows["n"].nunique() > 1 else f"{rows['n'].iloc[0]:,}"
    plots.caption(
        drawn, f"FP32, n = {each} test images a class, {int(whole['n']):,} in all; 95 % Wilson intervals"
    )
    return drawn


@figure("01_reliability", "01_reliability")
def reliability(table: pd.DataFrame) -> Figure:
    """Accuracy against the network's own confidence, bin by bin."""
    gap = float((table["n"] * (table["confidence"] - table["value"])).sum() / table["n"].sum())
    word = "too modest" if gap < 0 else "too sure of itself"
    top = table.loc[table["n"].idxmax()]  # the bin of most images
    drawn, ax = plots.canvas(
        f"The network is {word}: {top['confidence']:.0f} % confident, {top['value']:.1f} % right",
        "confidence (%)", "accuracy (%)", figsize=(6.5, 3.0),
    )  # fmt: skip
    ax.plot([0, 100], [0, 100], color="0.7", linewidth=1, zorder=1)
    ax.text(
        0.99, 0.04, "on the line: calibrated", transform=ax.transAxes, ha="right", color="0.45", fontsize=8.5
    )
    bars = {"yerr": plots.lengths(table), "ecolor": look("fp32").colour}
    ax.errorbar(table["confidence"], table["value"], fmt="none", **bars)
    sizes = 12 + 160 * table["n"] / table["n"].max()
    ax.scatter(
        table["confidence"], table["value"], s=sizes, color=look("fp32").colour, zorder=3, clip_on=False
    )
    ax.set_xlim(left=max(0, table["confidence"].min() - 8), right=102)
    ax.set_ylim(-3, 103)
    n = int(table["n"].sum())
    plots.caption(drawn, f"FP32, n = {n:,} test images; larger dot: more images; 95 % Wilson intervals")
    return drawn


@figure("01_distributions", "01_distributions")
def distributions(table: pd.DataFrame) -> Figure:
    """Kurtosis of the weights and of the input of every layer, in the order of the network."""
    found = table[table["metric"] == "kurtosis"]
    layers = list(found["layer"].drop_duplicates())
    middle = found.groupby("method")["value"].median()
    title = f"Median kurtosis: weights {middle['weights']:.1f}, activations {middle['activations']:.1f}"
    drawn, ax = plots.canvas(
        title, "layer, from the input to the output", "kurtosis (log scale)", figsize=(6.5, 3.2)
    )
    ax.set_yscale("log")
    for method in ("weights", "activations"):
        part = found[found["method"] == method]
        face = look(method)
        ax.plot([layers.index(name) for name in part["layer"]], part["value"], face.marker, markersize=4,
                color=face.colour, label=face.label)  # fmt: skip
    for height, name in ((1.8, "uniform"), (3.0, "normal"), (6.0, "Laplace")):
        ax.axhline(height, color="0.6", linewidth=0.9, linestyle="--", zorder=1)
        ax.annotate(
            name, (len(layers), height), xytext=(2, 2), textcoords="offset points", color="0.4", fontsize=8
        )
    starts = [place for place, name in enumerate(layers) if name.endswith(".0.conv1") or name == "fc"]
    ax.set_xticks(starts, [layers[place].split(".")[0] for place in starts])
    ax.set_yticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    ax.minorticks_off()
    ax.set_ylim(1.5, 3 * found["value"].max())
    ax.set_xlim(-1, len(layers) + 5)
    ax.legend(loc="upper center", ncols=2)
    plots.caption(
        drawn, f"each layer's weights and its input, n = {int(found['n'].max())} calibration images"
    )
    return drawn

"""Figures of notebook 07: what int8 operators inside a float32 network cost and save."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure
from quantlib.study.palette import BLUE, GREEN, GREY, ORANGE, VERMILLION

PARTS = {"convolution": BLUE, "quantize": ORANGE, "add": GREEN, "other": GREY}


@figure("07_layers", "07_layers")
def sqnr_by_layer(layers: pd.DataFrame) -> Figure:
    """SQNR of every layer's output: its own error, and what has piled up before it."""
    wide = layers.pivot(index="layer", columns="method", values="value")
    wide = wide.loc[list(dict.fromkeys(layers["layer"]))]
    made, ax = plots.canvas(
        f"A layer by itself keeps {wide['own'].median():.0f} dB; "
        f"after all {len(wide)} layers {wide['accumulated'].iloc[-1]:.0f} dB are left",
        "layer, in the order of the network", "SQNR of the output (dB)",
    )  # fmt: skip
    looks = {"own": (BLUE, "o", "own error"), "accumulated": (VERMILLION, "s", "accumulated")}
    for name, (colour, marker, label) in looks.items():
        ax.plot(range(len(wide)), wide[name], color=colour, marker=marker, markersize=3.5, linewidth=1)
        ax.annotate(label, (len(wide) - 1, wide[name].iloc[-1]), xytext=(7, 0), textcoords="offset points",
                    color=colour, va="center", fontweight="bold", annotation_clip=False)  # fmt: skip
    ax.set_ylim(bottom=0)
    plots.caption(made, f"simulated, W8A8; {int(layers['n'].iloc[0])} validation images")
    return made


@figure("07_accuracy", "07_accuracy")
def drop_by_method(accuracy: pd.DataFrame) -> Figure:
    """Points lost against FP32 on the same images, with the interval of the paired difference."""
    table = accuracy[accuracy["metric"] == "drop"].reset_index(drop=True)
    worse = [plots.look(str(name)).label for name in table.loc[table["low"] > 0, "method"]]
    made, ax = plots.canvas(
        f"Measurably worse than FP32 at 8 bits: {', '.join(worse) or 'none'}",
        "accuracy lost against FP32 (points; left of 0 is a gain)", figsize=(6.5, 2.4),
    )  # fmt: skip
    places = np.arange(len(table))[::-1]
    for place, row in zip(places, table.itertuples(), strict=True):
        face = plots.look(str(row.method))
        ax.plot([row.low, row.high], [place, place], color=face.colour, linewidth=2)
        ax.plot(row.value, place, color=face.colour, marker=face.marker, markersize=8)
        ax.annotate(f"{row.value:+.2f}", (row.value, place), xytext=(0, 8), textcoords="offset points",
                    ha="center", fontsize=8.5)  # fmt: skip
    ax.axvline(0, color=plots.colour("fp32"), linewidth=1)
    ax.set_yticks(places, [plots.look(str(name)).label for name in table["method"]])
    ax.set_ylim(-0.6, len(table) - 0.2)
    ax.grid(axis="y", visible=False)
    plots.caption(made, f"n = {int(table['n'].max()):,} test images, paired; 95 % bootstrap intervals")
    return made


@figure("07_speed", "07_speed")
def images_per_second(speed: pd.DataFrame) -> Figure:
    """Images a second of every network, at the two batch sizes."""
    table = speed[speed["metric"] == "images_per_second"]
    ratios = speed[speed["metric"] == "speedup"].set_index(["method", "batch"])["value"]
    sizes = sorted(table["batch"].unique())
    made, axes = plots.canvas("", "images a second", "", ncols=len(sizes), figsize=(7.4, 2.8))
    for ax, size in zip(np.ravel(axes), sizes, strict=True):
        part = table[table["batch"] == size].reset_index(drop=True)
        plots.bars_with_intervals(ax, part, form="{:.0f}")
        names = [plots.look(name).label for name in part["method"]]
        ax.set_yticklabels(names if size == sizes[0] else [])
        ax.set_title(f"batch {int(size)}: mixed {ratios['mixed', size]:.1f} times FP32")
        ax.margins(x=0.2)
    fast, slow = ratios["mixed", sizes[-1]], ratios["simulated", sizes[-1]]
    title = f"Int8 kernels run {fast:.1f} times as fast as FP32, simulated int8 {slow:.2f} times"
    made.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    rounds = int(table["n"].iloc[0])
    plots.caption(made, f"median and quartiles of {rounds} rounds in turn; machine in results/07_speed.json")
    return made


@figure("07_time", "07_time")
def where_the_time_goes(time: pd.DataFrame) -> Figure:
    """Milliseconds an image in convolutions, quantizing, adds and the rest."""
    wide = time.pivot(index="method", columns="kind", values="value").fillna(0.0)
    wide = wide.loc[list(dict.fromkeys(time["method"]))].reindex(columns=list(PARTS), fill_value=0.0)
    share = 1 - wide.loc["mixed", "convolution"] / wide.loc["mixed"].sum()
    made, ax = plots.canvas(
        f"In mixed the int8 kernels take only {1 - share:.0%} of the time", "milliseconds an image",
        figsize=(6.5, 2.4),
    )  # fmt: skip
    places, left = np.arange(len(wide))[::-1], np.zeros(len(wide))
    for kind, colour in PARTS.items():
        ax.barh(places, wide[kind], left=left, color=colour, height=0.6, label=kind)
        left = left + wide[kind].to_numpy()
    for place, total in zip(places, left, strict=True):
        ax.annotate(f"{total:.1f}", (total, place), xytext=(4, 0), textcoords="offset points", va="center")
    ax.set_yticks(places, [plots.look(str(name)).label for name in wide.index])
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    ax.margins(x=0.1)
    ax.legend(ncols=len(PARTS), loc="upper center", bbox_to_anchor=(0.5, -0.32), fontsize=8.5)
    plots.caption(made, f"batch {int(time['batch'].iloc[0])}")
    return made

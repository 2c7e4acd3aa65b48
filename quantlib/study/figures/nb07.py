"""Figures of notebook 07: what int8 operators inside a float32 network cost and save."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.drops import worse_than_fp32
from quantlib.study.figures.registry import figure
from quantlib.study.figures.speed import speed_panels
from quantlib.study.palette import BLUE, GREEN, GREY, ORANGE, VERMILLION

PARTS = {"convolution": BLUE, "quantize": ORANGE, "add": GREEN, "other": GREY}
"""The parts of the time, and their colours."""


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
    return worse_than_fp32(accuracy)


@figure("07_speed", "07_speed")
def images_per_second(speed: pd.DataFrame) -> Figure:
    """Images a second of every network, at the two batch sizes."""
    ratios = speed[speed["metric"] == "speedup"].set_index(["method", "batch"])["value"]
    largest = int(speed["batch"].max())
    fast, slow = ratios["mixed", largest], ratios["simulated", largest]
    title = f"Int8 kernels run {fast:.1f} times as fast as FP32, simulated int8 only {slow:.2f} times"
    return speed_panels(speed, title, "mixed")


@figure("07_time", "07_time")
def where_the_time_goes(time: pd.DataFrame) -> Figure:
    """Milliseconds an image in convolutions, quantizing, adds and the rest."""
    wide = time.pivot(index="method", columns="kind", values="value").fillna(0.0)
    wide = wide.loc[list(dict.fromkeys(time["method"]))].reindex(columns=list(PARTS), fill_value=0.0)
    share = 1 - wide.loc["mixed", "convolution"] / wide.loc["mixed"].sum()
    made, ax = plots.canvas(
        f"In mixed the int8 kernels take only {100 * (1 - share):.0f} % of the time", "milliseconds an image",
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

"""Figures of notebook 04: what a zero point buys, by layer and in accuracy."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure

BIT = 20 * np.log10(2)
"""What one bit is worth, in dB."""


@figure("04_gain", "04_layers")
def gain(layers: pd.DataFrame) -> Figure:
    """Affine over signed symmetric in dB, tensor by tensor, apart for one-sided tensors and others."""
    eight = layers[layers["bits"] == 8]
    table = eight.pivot_table(index=["layer", "one_sided"], columns="method", values="value", sort=False)
    gained = (table["affine"] - table["symmetric"]).reset_index(name="gain")
    means = gained.groupby("one_sided")["gain"].mean()
    title = f"{means[True]:.1f} dB behind a ReLU, {means[False]:.1f} dB where values have both signs"
    drawn, ax = plots.canvas(title, "tensor, from the images to the classifier", "affine over symmetric, dB")
    ax.axhline(BIT, color="0.5", linewidth=1, linestyle="--")
    ax.annotate("one bit, 6.02 dB", (len(gained), BIT), xytext=(0, 9), textcoords="offset points",
                ha="right", color="0.4", fontsize=8)  # fmt: skip
    above = gained.loc[~gained["one_sided"], "gain"].max() + 0.35
    for one_sided, method, name, spot in (
        (True, "unsigned", "behind a ReLU: zero point 0", 5.2),
        (False, "affine", "both signs: a true zero point", min(above, 4.6)),
    ):
        part = gained[gained["one_sided"] == one_sided]
        face = plots.look(method)
        ax.plot(part.index, part["gain"], face.marker, color=face.colour, linestyle="none")
        ax.annotate(
            name, (0.02, spot), xycoords=("axes fraction", "data"), color=face.colour, fontweight="bold"
        )
    ax.set_ylim(-0.2, 7)
    plots.caption(drawn, f"8 bits, each of {len(gained)} tensors on its own min-max range")
    return drawn


@figure("04_accuracy", "04_accuracy")
def accuracy(table: pd.DataFrame) -> Figure:
    """Drop against FP32 over the activations' width, for three grids."""
    drops = table[table["metric"] == "drop"]
    lowest = drops[drops["bits"] == drops["bits"].min()].set_index("method")["value"]
    lost = lowest["symmetric"] - lowest["unsigned"]
    title = f"At {drops['bits'].min()} bits the sign costs {lost:.1f} points, the zero point next to nothing"
    if abs(lowest["unsigned"] - lowest["affine"]) > 0.5:
        title = f"At {drops['bits'].min()} bits the sign costs {lost:.1f} points"
    drawn, ax = plots.canvas(title, "bits of the activations", "drop against FP32, points")
    shown = drops.assign(bits=-drops["bits"])
    plots.lines_with_intervals(ax, shown, "bits", label=False)
    widths = sorted(drops["bits"].unique(), reverse=True)
    ax.set_xticks([-bits for bits in widths], [f"{bits}" for bits in widths])
    ax.axhline(0, color="0.5", linewidth=1)
    ends = {str(method): (float(-part["bits"].min()), float(part.loc[part["bits"].idxmin(), "value"]))
            for method, part in drops.groupby("method", sort=False)}  # fmt: skip
    plots.label_lines(ax, ends)
    plots.caption(
        drawn, f"weights 8 bits, n = {int(drops['n'].iloc[0]):,}, bands: 95 % of the paired difference"
    )
    return drawn

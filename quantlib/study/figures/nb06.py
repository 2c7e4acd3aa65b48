"""Figures of notebook 06: folding batch norms, and the place of the ReLU."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure

PLACES = ("after_relu", "before_relu", "before_and_after_relu")
"""Where a tensor is rounded."""
KINDS = {"conv": "a convolution", "add": "an add"}
"""What stands before a ReLU."""


@figure("06_weights", "06_weights")
def folding_by_layer(weights: pd.DataFrame) -> Figure:
    """What folding does to the SQNR of the average channel, layer by layer, per tensor and per channel."""
    table = weights[weights["metric"] == "sqnr_db"]
    wide = table.pivot(index="layer", columns=["method", "state"], values="value")
    wide = wide.loc[list(dict.fromkeys(table["layer"]))]
    change = {m: wide[m, "folded"] - wide[m, "plain"] for m in ("per_tensor", "per_channel")}
    made, ax = plots.canvas(
        f"Folding costs up to {-change['per_tensor'].min():.0f} dB per tensor, "
        f"{max(0.0, -change['per_channel'].min()):.1f} dB per channel",
        "layer, in the order of the network", "change of the channels' SQNR (dB)",
    )  # fmt: skip
    last = np.array([name.endswith("conv3") for name in wide.index])
    places = np.arange(len(wide))
    for method, values in change.items():
        face = plots.look(method)
        ax.plot(places, values, color=face.colour, linewidth=0.8, alpha=0.5)
        ax.scatter(places, values, color=face.colour, marker=face.marker, s=16, zorder=3)
    values = change["per_tensor"].to_numpy()
    ax.scatter(places[last], values[last], facecolors="none", edgecolors="black", s=48, zorder=4)
    ax.text(0.02, 0.05, "circled: conv3, the last of a bottleneck", transform=ax.transAxes, fontsize=8.5)
    ends = {method: (len(wide) - 1, float(values.iloc[-1])) for method, values in change.items()}
    plots.label_lines(ax, ends)
    plots.caption(made, f"{len(wide)} convolutions, 8 bits, symmetric, min-max; mean over channels")
    return made


@figure("06_placement", "06_placement")
def cost_by_layer(placement: pd.DataFrame) -> Figure:
    """What quantizing before the ReLU, and both before and after it, costs against after alone."""
    top = placement["bits_activation"].max()
    table = placement[placement["bits_activation"] == top]
    wide = table.groupby(["layer", "kind", "method"], sort=False)["value"].mean().unstack("method")
    cost = wide[list(PLACES[1:])].rsub(wide["after_relu"], axis=0).reset_index("kind")
    means = cost.groupby("kind")["before_relu"].mean()
    made, ax = plots.canvas(
        "Before the ReLU costs "
        + ", ".join(f"{means[k]:.1f} dB after {name}" for k, name in KINDS.items() if k in means),
        "ReLU, in the order of the network", "SQNR lost against after ReLU alone (dB)",
    )  # fmt: skip
    places = np.arange(len(cost))
    added = (cost["kind"] == "add").to_numpy()
    for method, guess in zip(PLACES[1:], (20 * np.log10(2), 10 * np.log10(5)), strict=True):
        face = plots.look(method)
        values = cost[method].to_numpy()
        ax.axhline(guess, color=face.colour, linestyle="--", linewidth=1)
        ax.scatter(places[~added], values[~added], color=face.colour, marker=face.marker, s=18, zorder=3)
        ax.scatter(places[added], values[added], facecolors="white", edgecolors=face.colour,
                   marker=face.marker, s=24, zorder=3)  # fmt: skip
    ax.set_ylim(0, max(9.0, float(cost[list(PLACES[1:])].max().max()) + 0.5))
    plots.label_lines(ax, {m: (len(cost) - 1, float(cost[m].iloc[-1])) for m in PLACES[1:]})
    plots.caption(
        made,
        "filled: after a convolution; hollow: after a residual add; dashed: predicted; "
        f"{len(cost)} ReLUs, {int(top)} bits, min-max",
    )
    return made


@figure("06_accuracy", "06_accuracy")
def drop_by_bits(accuracy: pd.DataFrame) -> Figure:
    """Points of accuracy lost against FP32, by the bits of the activations and the place of the rounding."""
    table = accuracy[accuracy["metric"] == "drop"]
    bits = sorted(table["bits_activation"].unique(), reverse=True)
    made, axes = plots.canvas("", "points lost against FP32", "", ncols=len(bits), figsize=(7.4, 2.6))
    for place, (ax, width) in enumerate(zip(np.ravel(axes), bits, strict=True)):
        part = table[table["bits_activation"] == width].set_index("method").loc[list(PLACES)].reset_index()
        plots.bars_with_intervals(ax, part)
        ax.set_title(f"{int(width)} bits")
        ax.margins(x=0.3)
        if place:
            ax.set_yticklabels([])
    low = table[table["bits_activation"] == min(bits)].set_index("method")["value"]
    lost = [f"{low[place]:.1f}" for place in PLACES]
    title = f"At {min(bits)} bits {lost[0]} points are lost after ReLU, {lost[1]} before, {lost[2]} with both"
    plots.set_title(made, title)
    n = int(table["n"].iloc[0])
    plots.caption(made, f"only activations rounded, ACIQ's ranges; n = {n:,} test images, 95 % intervals")
    return made

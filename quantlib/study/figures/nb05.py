"""Figures of notebook 05: full against narrow range, and what saturation and its cures cost."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure

CURES = {
    "torch": ("activations 0..127", "activations"),
    "onnxruntime": ("weights -64..64", "weights"),
    "nncf": ("weights -64..63", "weights"),
}
"""Who cures saturation how: label, and whose colour."""


def gain_by_theory(weights: np.ndarray, bits: int = 8) -> np.ndarray:
    """Full over narrow range in dB for a filter of so many weights.

    20 log10((2**b - 1) / (2**b - 2)) - 10 log10((n + 2) / (n - 1)): the step is shorter, but the largest
    weight has an error of half a step, three times the mean square of the others; narrow range has none.
    Introduced in notebook 05.
    """
    steps = 20 * np.log10((2**bits - 1) / (2**bits - 2))
    gained: np.ndarray = steps - 10 * np.log10((weights + 2) / (weights - 1))
    return gained


@figure("05_gain", "05_narrow_range")
def gain(table: pd.DataFrame) -> Figure:
    """Full over narrow range at 8 bits by layer, over the weights in a filter, with the theory's curve."""
    eight = table[table["bits"] == 8]
    wide = eight.pivot_table(index=["layer", "filter"], columns="method", values="value", sort=False)
    gained = (wide["full_range"] - wide["narrow_range"]).reset_index(name="gain")
    better = (gained["gain"] > 0).sum()
    title = f"At 8 bits full range is better on {better} of {len(gained)} layers: those with large filters"
    drawn, ax = plots.canvas(title, "weights in a filter", "full over narrow range, dB")
    n = np.geomspace(gained["filter"].min() * 0.9, gained["filter"].max() * 1.2, 200)
    ax.plot(n, gain_by_theory(n), color="0.45", linewidth=1.2)
    ax.axhline(0, color="0.7", linewidth=0.8)
    ax.plot(gained["filter"], gained["gain"], "o", color=plots.colour("full_range"), alpha=0.7)
    words = "shorter step, less\nthe largest weight's half step"
    ax.annotate(words, (125, -0.15), color="0.35", fontsize=8.5, va="top")
    ax.set_xscale("log")
    ticks = sorted(gained["filter"].unique())
    ticks = [tick for tick in ticks if tick in (27, 64, 128, 256, 576, 1152, 2304, 4608)]
    ax.set_xticks(ticks, [f"{tick}" for tick in ticks], minor=False)
    ax.set_xticks([], minor=True)
    plots.caption(drawn, f"{len(gained)} layers, min-max, one scale per filter")
    return drawn


@figure("05_accuracy", "05_accuracy")
def accuracy(table: pd.DataFrame) -> Figure:
    """Drop against FP32 over the weights' width: both ranges, min-max and with a range search."""
    drops = table[(table["metric"] == "drop") & table["method"].isin(["full_range", "narrow_range"])]
    wide = drops[drops["observer"] == "minmax"].pivot(index="bits", columns="method", values="value")
    apart = wide["narrow_range"] - wide["full_range"]
    most = apart.abs().idxmax()
    better = "full" if apart[most] > 0 else "narrow"
    title = f"At {most} bits and min-max, {better} range keeps {abs(apart[most]):.0f} points more"
    drawn, ax = plots.canvas(title, "bits of the weights", "drop against FP32, points")
    widths = sorted(drops["bits"].unique(), reverse=True)
    place = {bits: at for at, bits in enumerate(widths)}
    minmax = drops[drops["observer"] == "minmax"]
    plots.lines_with_intervals(ax, minmax.assign(bits=minmax["bits"].map(place)), "bits", label=False)
    searched = drops[drops["observer"] == "mse"]
    for method, part in searched.groupby("method", sort=False):
        face = plots.look(str(method))
        errors = np.abs(part[["low", "high"]].sub(part["value"], axis=0).to_numpy().T)
        side = -0.05 if method == "full_range" else -0.1
        at = part["bits"].map(place) + side
        hollow = {"fmt": face.marker, "color": face.colour, "markerfacecolor": "white"}
        ax.errorbar(at, part["value"], yerr=errors, zorder=4, **hollow)
    ax.set_xticks(list(place.values()), [f"{bits}" for bits in widths])
    ax.axhline(0, color="0.5", linewidth=1)
    ends = {method: (float(place[wide.index[0]]), float(lost.iloc[0])) for method, lost in wide.items()}
    plots.label_lines(ax, ends)
    n = int(drops["n"].iloc[0])
    plots.caption(
        drawn, f"lines: min-max; open markers: range search; activations 8 bits, n = {n:,}, paired 95 %"
    )
    return drawn


@figure("05_saturation", "05_saturation", "05_reduced_range")
def saturation(harm: pd.DataFrame, reduced: pd.DataFrame) -> Figure:
    """Where int16 saturates on real integers, and what the three cures cost at each layer's output."""
    changed = harm[harm["metric"] == "sums_changed_percent"]["value"].to_numpy()
    sqnr = reduced[reduced["metric"] == "sqnr_db"]
    wide = sqnr.pivot_table(index="layer", columns="method", values="value", sort=False)
    cost = -wide.sub(wide["w8a8"], axis=0)
    hurt = int((changed > 0).sum())
    means = cost[list(CURES)].mean()
    span = f"{means.min():.1f} to {means.max():.1f} dB"
    title = f"{hurt} of {len(changed)} convolutions saturate; the cures cost {span}"
    drawn, (left, right) = plots.canvas(title, ncols=2, width_ratios=[1.15, 1])
    left.plot(changed, "o", color=plots.colour("full_range"), markersize=4)
    left.set_yscale("symlog", linthresh=0.01)
    left.set_ylim(-0.002, 100)
    left.set_yticks([0, 0.01, 0.1, 1, 10, 100], ["0", "0.01", "0.1", "1", "10", "100"])
    left.annotate("the images", (1.5, changed[0]), va="center", fontsize=8.5)
    left.set(xlabel="convolution, from the images on", ylabel="sums changed by int16, %")
    for place, (method, (name, look)) in enumerate(CURES.items()):
        face = plots.look(look)
        sway = np.random.default_rng(0).uniform(-0.18, 0.18, len(cost))
        right.scatter(cost[method], -place + sway, s=12, color=face.colour, alpha=0.5, linewidths=0)
        right.plot(cost[method].mean(), -place, "|", color="black", markersize=18, markeredgewidth=2)
        right.annotate(f"{name}: {cost[method].mean():.1f} dB", (0.15, -place + 0.34), color=face.colour,
                       fontweight="bold", fontsize=8.5)  # fmt: skip
    right.set_yticks([])
    right.set_ylim(-2.5, 0.65)
    right.set_xlim(left=min(0.0, float(cost[list(CURES)].min().min()) - 0.1))
    right.grid(axis="x")
    right.set_xlabel("SQNR lost at a layer's output, dB")
    images = int(sqnr["n"].iloc[0])
    plots.caption(drawn, f"right: each dot a convolution, bar the mean; {images} image{'s' * (images > 1)}")
    return drawn

"""Figures of notebook 02: what observers and channels do to the weights."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from quantlib.study import plots
from quantlib.study.figures.drops import drop_lines
from quantlib.study.figures.registry import figure

GRANULARITIES = {"per_tensor": "one range a layer", "per_channel": "one range a channel"}
"""Whose range it is, in words."""


@figure("02_sqnr", "02_sqnr")
def sqnr_by_layer(sqnr: pd.DataFrame) -> Figure:
    """SQNR of every layer at 4 bits, min-max: one range a layer against one a channel."""
    table = sqnr[(sqnr["method"] == "minmax") & (sqnr["bits_weight"] == 4)]
    wide = table.pivot(index="layer", columns="granularity", values="value")
    wide = wide.loc[list(dict.fromkeys(table["layer"]))]
    won = (wide["per_channel"] - wide["per_tensor"]).median()
    made, ax = plots.canvas(
        f"A range per channel is worth {won:.1f} dB, {won / 6.02:.1f} bits, in the typical layer",
        "layer, in the order of the network", "SQNR of the weights (dB)",
    )  # fmt: skip
    for name in GRANULARITIES:
        face = plots.look(name)
        ax.plot(
            range(len(wide)), wide[name], color=face.colour, marker=face.marker, linewidth=0, markersize=4
        )
    ax.set_ylim(bottom=min(0.0, float(wide.min().min())))
    plots.label_lines(ax, {name: (len(wide) - 1, float(wide[name].iloc[-1])) for name in GRANULARITIES})
    plots.caption(made, f"weights of {len(wide)} layers, batch norm folded, 4 bits, symmetric, min-max")
    return made


@figure("02_accuracy", "02_weights")
def accuracy_by_bits(weights: pd.DataFrame) -> Figure:
    """Accuracy lost over the bits of the weights, by observer, per tensor beside per channel."""
    found = weights[(weights["metric"] == "drop") & (weights["split"] == "validation")]
    table = found[found["grid"] == "symmetric"]
    made, axes = plots.canvas("", "bits of the weights", "", ncols=2, sharey=True, figsize=(7.4, 3.6))
    for ax, (granularity, name) in zip(axes, GRANULARITIES.items(), strict=True):
        drop_lines(ax, table[table["granularity"] == granularity], "bits_weight", room=0.75)
        ax.set_title(name)
    low, high = table["low"].min(), table["high"].max()
    axes[0].set_ylim(max(2.0, high * 1.05), min(-1.0, low - 1))
    axes[0].set_ylabel("accuracy against FP32 (points lost)")
    plots.set_title(made, _accuracy_title(table))
    n = int(table["n"].max())
    plots.caption(
        made, f"weights only, activations float32; n = {n:,} validation images, paired 95 % intervals"
    )
    return made


def _accuracy_title(table: pd.DataFrame) -> str:
    """What min-max loses at 4 bits, or the width nearest to it, per channel and per layer."""
    bits = min(table["bits_weight"], key=lambda width: abs(width - 4))
    rows = table[(table["method"] == "minmax") & (table["bits_weight"] == bits)]
    at = rows.set_index("granularity")["value"]
    return (
        f"At {bits} bits min-max loses {at['per_channel']:.1f} points per channel, "
        f"{at['per_tensor']:.1f} per layer"
    )


@figure("02_uniformity", "02_uniformity")
def uniformity_by_layer(uniformity: pd.DataFrame) -> Figure:
    """Entropy and lost decibels of every layer's weights and activations."""
    kinds = ["weights", "activations"]
    measures = {"entropy": "entropy of 256 bins / 8 bits", "lost_db": "dB lost against the uniform law"}
    wide = uniformity.pivot(index="layer", columns=["metric", "method"], values="value")
    wide = wide.loc[list(dict.fromkeys(uniformity["layer"]))]
    shares = {
        m: ((wide[m, kinds[0]] - wide[m, kinds[1]]) * (1 if m == "entropy" else -1) > 0).mean()
        for m in measures
    }
    made, axes = plots.canvas("", "layer, in the order of the network", "", ncols=2, figsize=(7.0, 3.2))
    for ax, (measure, label) in zip(axes, measures.items(), strict=True):
        for kind in kinds:
            face = plots.look(kind)
            dots = {"color": face.colour, "marker": face.marker, "linewidth": 0, "markersize": 3.5}
            ax.plot(range(len(wide)), wide[measure, kind], **dots)
        law = 1.0 if measure == "entropy" else 0.0
        ax.axhline(law, color=plots.colour("fp32"), linestyle="--", linewidth=1)
        ax.set_ylabel(label)
        ax.set_title(f"weights ahead in {100 * shares[measure]:.0f} % of layers")
    axes[0].set_ylim(0, 1.08)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    for kind, height in zip(kinds, (0.13, 0.04), strict=True):
        axes[0].text(
            0.03, height, plots.look(kind).label, color=plots.colour(kind), fontweight="bold",
            transform=axes[0].transAxes,
        )  # fmt: skip
    ahead = "Weights" if min(shares.values()) > 0.5 else "Not always weights"
    plots.set_title(made, f"{ahead} are nearer to the uniform law (dashed) than activations")
    plots.caption(made, f"{len(wide)} layers; activations after the ReLU where there is one")
    return made

"""Figures of notebook 11: how many weights can go, which ones, and what thinner layers gain in time."""

import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.nb10 import fallen
from quantlib.study.figures.registry import figure

GIVEN_UP = 1.0
"""Points lost that the title calls harmless."""


def harmless(curve: pd.DataFrame, method: str) -> float:
    """The largest sparsity at which a method, and each sparser one before, loses at most GIVEN_UP points.

    Introduced in notebook 11.
    """
    rows = curve[(curve["method"] == method) & (curve["metric"] == "drop")].sort_values("sparsity")
    within = (rows["value"] <= GIVEN_UP).cummin()
    return float(rows.loc[within, "sparsity"].max()) if within.any() else 0.0


def may_go(curve: pd.DataFrame, method: str) -> str:
    """The harmless share of a method in words, or that it lies under the smallest share that was tried.

    Introduced in notebook 11.
    """
    share = harmless(curve, method)
    return f"{share:.0%}" if share else f"under {curve.loc[curve['method'] == method, 'sparsity'].min():.0%}"


@figure("11_curve", "11_curve")
def accuracy_over_sparsity(curve: pd.DataFrame) -> Figure:
    """Points lost over the share of weights dropped, by what is done about it."""
    rows = curve[curve["metric"] == "drop"]
    long = "retrained_long" in set(rows["method"])
    made, ax = plots.canvas(
        f"At most {GIVEN_UP:g} point lost: {may_go(rows, 'global')} of the weights without repair,\n"
        f"{may_go(rows, 'recalibrated')} with new batch-norm statistics, "
        f"{may_go(rows, 'blocks')} by LAMP after blocks have learned,\n"
        f"{may_go(rows, 'retrained')} after one epoch"
        + (f", {may_go(rows, 'retrained_long')} by LAMP after a long retraining" if long else ""),
        "weights dropped (%)", "points lost against FP32", figsize=(6.5, 4.6),
    )  # fmt: skip
    table = rows.assign(percent=100 * rows["sparsity"])
    ends = {}
    for method in table["method"].drop_duplicates():
        part, face = table[table["method"] == method].sort_values("percent"), plots.look(method)
        last = plots.line_with_bars(ax, part["percent"], part, face, linewidth=1.2, zorder=3)
        ends[method] = (float(part["percent"].iloc[-1]), last)
    ax.axhline(0, color=plots.colour("fp32"), linewidth=1, linestyle="--")
    ax.set_xlim(max(0.0, table["percent"].min() - 5), 132)
    ax.set_xticks([tick for tick in range(0, 101, 20) if tick >= table["percent"].min() - 5])
    ax.set_yscale("symlog", linthresh=2.0)  # the first points lost are what matters
    ax.set_yticks([0, 1, 2, 5, 10, 20, 50, 90], ["0", "1", "2", "5", "10", "20", "50", "90"])
    ax.set_ylim(min(-1.0, table["low"].min()), 220)
    ax.minorticks_off()
    ax.invert_yaxis()
    plots.label_lines(ax, ends)
    few, many = int(rows["n"].min()), int(rows["n"].max())
    images = f"{many:,}" if few == many else f"{few:,} ({many:,} blocks, retrained)"
    plots.caption(made, f"n = {images} test images, paired 95 % intervals; scale linear up to 2")
    return made


@figure("11_blocks", "11_blocks")
def error_of_blocks(blocks: pd.DataFrame) -> Figure:
    """Relative error of each block, cut by LAMP and then learned, at the highest sparsity."""
    rows = blocks[(blocks["sparsity"] == blocks["sparsity"].max()) & (blocks["method"] == "blocks")]
    wide = rows.pivot(index="block", columns="metric", values="value").loc[list(dict.fromkeys(rows["block"]))]
    less = float((wide["error_before"] / wide["error_after"]).median())
    made, ax = plots.canvas(
        f"{rows['sparsity'].iloc[0]:.0%} of the weights dropped by LAMP: learning divides\n"
        f"the error of a block by {less:.1f} (median)", "", "squared error / squared output",
    )  # fmt: skip
    fallen(ax, wide["error_before"], wide["error_after"], ("cut", "learned"))
    plots.caption(made, "on the images that the blocks learned from; each is named after its first layer")
    return made


@figure("11_layers", "11_layers")
def what_is_left_of_each_layer(layers: pd.DataFrame) -> Figure:
    """The share that one threshold leaves of each layer, over the layer's size."""
    rows = layers[layers["metric"] == "left"]
    biggest = rows.loc[rows["weights"].idxmax()]
    whole = 100 * float((rows["value"] * rows["weights"]).sum() / rows["weights"].sum())
    most, least = rows.loc[rows["value"].idxmax()], rows.loc[rows["value"].idxmin()]
    made, ax = plots.canvas(
        f"One threshold leaves {100 * most['value']:.0f} % of {most['layer']} "
        f"and {100 * least['value']:.1f} % of {least['layer']}",
        "weights in the layer", "left (%)",
    )  # fmt: skip
    ax.scatter(rows["weights"], 100 * rows["value"], s=24, color=plots.colour("global"), alpha=0.8, zorder=3)
    ax.axhline(whole, color=plots.colour("layer"), linewidth=1.2, linestyle="--")
    ax.annotate(
        f"per layer: {whole:.0f} % of each", (rows["weights"].min(), whole), xytext=(0, 4),
        textcoords="offset points", color=plots.colour("layer"), fontsize=8.5,
    )  # fmt: skip
    named = pd.concat([rows.nlargest(2, "value"), rows.nsmallest(1, "value"), rows[rows["layer"] == "fc"]])
    for row in named.drop_duplicates("layer").itertuples():
        ax.annotate(
            row.layer, (row.weights, 100 * row.value), xytext=(6, 3), textcoords="offset points", fontsize=8
        )
    ax.set_xscale("log")
    ax.set_xlim(right=float(biggest["weights"]) * 4)
    plots.caption(made, f"{len(rows)} layers of ResNet-50; no image was looked at")
    return made


@figure("11_structured", "11_structured", "11_speed")
def accuracy_over_time(structured: pd.DataFrame, speed: pd.DataFrame) -> Figure:
    """Points lost over measured speed: zeros in place, and layers that really are thinner."""
    times = speed[speed["metric"] == "speedup"].set_index(["method", "share"])
    lost = structured[structured["metric"] == "drop"]
    thin = lost[(lost["method"] == "thinned") & (lost["repair"] == "retrained")].sort_values("share")
    zeros = times.xs("masked").iloc[0]
    best = times.xs("thinned")["value"].max()
    made, ax = plots.canvas(
        f"Zeros in place: {zeros['value']:.2f} times as fast. Filters gone: up to {best:.1f} times",
        "times as fast as FP32", "points lost against FP32",
    )  # fmt: skip
    masked = lost[lost["method"] == "masked"].iloc[0]
    points = [("masked", masked, zeros, f"{masked['share']:.0%} zeros")]
    points += [
        ("thinned", row, times.loc[("thinned", row["share"])], f"{row['share']:.0%} of the filters gone")
        for _, row in thin.iterrows()
    ]
    for method, row, time, said in points:
        face = plots.look(method)
        ax.plot([time["low"], time["high"]], [row["value"]] * 2, color=face.colour, linewidth=1.5)
        ax.plot([time["value"]] * 2, [row["low"], row["high"]], color=face.colour, linewidth=1.5)
        ax.plot(time["value"], row["value"], color=face.colour, marker=face.marker, markersize=7)
        ax.annotate(
            said, (time["value"], row["value"]), xytext=(8, 6), textcoords="offset points",
            color=face.colour, fontsize=8.5,
        )  # fmt: skip
    ax.axhline(0, color=plots.colour("fp32"), linewidth=1, linestyle="--")
    ax.axvline(1, color=plots.colour("fp32"), linewidth=1, linestyle="--")
    ax.set_xlim(0, 1.45 * max(best, 1.0))
    ax.margins(y=0.15)
    ax.invert_yaxis()
    plots.caption(
        made, f"retrained; n = {int(lost['n'].max()):,} test images; up: paired 95 % intervals, across: "
        f"lowest and highest round, batches of {int(speed['batch'].iloc[0])}"
    )  # fmt: skip
    return made

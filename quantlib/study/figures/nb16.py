"""Figures of notebook 16: what each strategy of SqueezeNet saves, what it costs, and what the clock says."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure


@figure("16_cost", "16_cost")
def cost_by_variant(cost: pd.DataFrame) -> Figure:
    """Parameters and multiply-adds of every variant."""
    wide = cost.pivot(index="method", columns="metric", values="value").loc[
        list(dict.fromkeys(cost["method"]))
    ]
    fewer = wide.loc["plain", "parameters"] / wide.loc["squeezenet", "parameters"]
    less = wide.loc["plain", "macs"] / wide.loc["squeezenet", "macs"]
    made, axes = plots.canvas(
        f"Three strategies: {fewer:.1f} times fewer parameters, {less:.1f} times fewer multiply-adds",
        ncols=2, figsize=(7.4, 2.8),
    )  # fmt: skip
    units = {"parameters": "parameters (millions)", "macs": "multiply-adds an image (millions)"}
    for ax, (metric, unit) in zip(np.ravel(axes), units.items(), strict=True):
        part = wide[metric].div(1e6).rename("value").reset_index().assign(low=np.nan, high=np.nan)
        plots.bars_with_intervals(ax, part, form="{:.2f}" if metric == "parameters" else "{:.0f}")
        ax.set_xlabel(unit)
        ax.margins(x=0.2)
    np.ravel(axes)[1].set_yticklabels([])
    return made


@figure("16_accuracy", "16_accuracy")
def accuracy_by_parameters(accuracy: pd.DataFrame) -> Figure:
    """Accuracy of every variant against its parameters, all trained alike."""
    table = accuracy[accuracy["metric"] == "accuracy"].set_index("method")
    lost = table.loc["plain", "value"] - table.loc["squeezenet", "value"]
    fewer = table.loc["plain", "parameters"] / table.loc["squeezenet", "parameters"]
    made, ax = plots.canvas(
        f"Trained alike, SqueezeNet {'loses' if lost > 0 else 'gains'} {abs(lost):.1f} points "
        f"with {fewer:.1f} times fewer parameters",
        "parameters (millions)", "accuracy (%)",
    )  # fmt: skip
    ends, seen = {}, list[float]()
    for name, row in table.iterrows():
        # Networks of one size stand side by side.
        face, x = plots.look(str(name)), row["parameters"] / 1e6 * 1.05 ** seen.count(row["parameters"])
        seen.append(row["parameters"])
        ax.plot([x, x], [row["low"], row["high"]], color=face.colour, linewidth=1.5)
        ax.plot(x, row["value"], color=face.colour, marker=face.marker, markersize=8)
        ends[str(name)] = (x * 1.05, float(row["value"]))
    ax.set_xscale("log")
    ticks = [0.5, 1, 2, 4, 8]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xlim(0.5, 25)
    ax.xaxis.minorticks_off()
    plots.label_lines(ax, ends)
    plots.caption(made, f"n = {int(table['n'].max()):,} test images; one run each")
    return made


@figure("16_speed", "16_speed")
def time_by_arithmetic(speed: pd.DataFrame) -> Figure:
    """How many times as fast as ResNet-50, against how many times fewer multiply-adds."""
    table = speed[speed["metric"] == "speedup"]
    large = int(table["batch"].max())
    at = table[(table["batch"] == large) & (table["method"] == "squeezenet")].iloc[0]
    made, ax = plots.canvas(
        f"{at['fewer_macs']:.1f} times fewer multiply-adds than ResNet-50 run "
        f"{at['value']:.1f} times as fast",
        "times fewer multiply-adds than ResNet-50", f"times as fast, batch {large}",
    )  # fmt: skip
    rows = table[(table["batch"] == large) & (table["method"] != "fp32_folded")]
    ends = [1.8, float(rows["fewer_macs"].max()) * 1.1]
    ax.loglog(ends, ends, color=plots.colour("fp32"), linestyle="--", linewidth=1)
    ax.minorticks_off()
    for row in rows.itertuples():
        face = plots.look(str(row.method))
        ax.plot([row.fewer_macs] * 2, [row.low, row.high], color=face.colour, linewidth=1.5)
        ax.plot(row.fewer_macs, row.value, color=face.colour, marker=face.marker, markersize=8, zorder=4)
        below, above = ("plain", "without_one_by_one"), ("without_squeeze", "squeezenet")
        shift = (9, -14) if row.method in below else (9, 3) if row.method in above else (9, -3)
        ax.annotate(
            face.label, (row.fewer_macs, row.value), xytext=shift, textcoords="offset points",
            color=face.colour, fontsize=8.5, fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6},
        )  # fmt: skip
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    ax.set_xlim(1.8, float(rows["fewer_macs"].max()) * 3.2)
    rounds = plots.counted(int(rows["n"].max()), "round")
    told = f"dashed: as the arithmetic promises; bars: lowest and highest of {rounds}"
    plots.caption(made, f"batch norm folded; {told}")
    return made

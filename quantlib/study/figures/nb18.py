"""Figures of notebook 18: the ingredients of speed, the roofline, the unfused graph, every engine."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure
from quantlib.study.palette import BLUE, GREY, ORANGE


@figure("18_ingredients", "18_ingredients")
def ingredients(table: pd.DataFrame) -> Figure:
    """How many times as fast each ingredient makes one layer and the whole network."""
    times = table[table["metric"] == "speedup"].reset_index(drop=True)
    names = list(dict.fromkeys(times["ingredient"] + ": " + times["method"]))
    made, ax = plots.canvas(
        _title_of_ingredients(times), "times as fast as without it (log scale)", figsize=(7.2, 4.6)
    )
    for place, colour, marker, shift in (("layer", ORANGE, "o", 0.15), ("network", BLUE, "s", -0.15)):
        part = times[times["place"] == place]
        at = [
            len(names) - 1 - names.index(name) + shift for name in part["ingredient"] + ": " + part["method"]
        ]
        spread = np.abs(np.vstack([part["value"] - part["low"], part["high"] - part["value"]]))
        ax.errorbar(part["value"], at, xerr=spread, fmt=marker, color=colour, capsize=2, label=place)
        for value, height in zip(part["value"], at, strict=True):
            ax.annotate(
                f"{value:.2f}",
                (value, height),
                xytext=(0, 4),
                textcoords="offset points",
                fontsize=7,
                ha="center",
            )
    ax.axvline(1, color="0.6", linewidth=0.8)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.minorticks_off()
    ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names[::-1]])
    ax.legend(loc="lower right")
    plots.caption(made, f"median, lowest and highest of {int(times['n'].max())} rounds")
    return made


def _title_of_ingredients(times: pd.DataFrame) -> str:
    whole = times[times["place"] == "network"].sort_values("value")
    if whole.empty:
        return "What each ingredient is worth"
    first = whole.iloc[-1]
    what = f"{first['ingredient']}, {first['method'].replace('_', ' ')}"
    return f"Largest gain in the network: {what}, {first['value']:.1f} times"


@figure("18_roofline", "18_layers", "18_peaks")
def roofline(layers: pd.DataFrame, peaks: pd.DataFrame) -> Figure:
    """Operations a second of every layer over its operations a byte, under the machine's measured roof."""
    top = peaks.set_index("method")["value"]
    made, ax = plots.canvas("", "operations for each byte moved", "Gop/s", figsize=(6.8, 4.2))
    grid = np.logspace(0, 4, 200)
    for kind, colour in (("int8", BLUE), ("fp32", GREY)):
        ax.plot(grid, np.minimum(top[f"peak_{kind}"], grid * top["bandwidth"]), color=colour, linewidth=1.2)
        ax.annotate(
            f"{kind} peak {top[f'peak_{kind}']:,.0f} Gop/s", (grid[-1], top[f"peak_{kind}"]),
            xytext=(0, 4), textcoords="offset points", ha="right", color=colour, fontsize=8,
        )  # fmt: skip
    dots = layers[layers["metric"] == "gops"]
    for method in dots["method"].drop_duplicates():
        face, part = plots.look(method), dots[dots["method"] == method]
        ax.scatter(
            part["intensity"], part["value"], s=14, color=face.colour, marker=face.marker, label=face.label
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.legend(loc="lower right")
    best = dots[dots["method"] != "fp32"]
    share = 100 * best["value"].max() / top["peak_int8"]
    ax.set_title(f"The best int8 layer reaches {share:.0f} % of the measured peak")
    plots.caption(made, f"{dots['layer'].nunique()} layers, batch {int(dots['batch'].iloc[0])}")
    return made


@figure("18_unfused", "18_unfused")
def unfused(table: pd.DataFrame) -> Figure:
    """The same int8 file, as far as the optimizer may fuse it, beside FP32."""
    part = table[table["metric"] == "milliseconds"].reset_index(drop=True)
    middle = part.set_index("method")["value"]
    worst, best = (middle[f"qdq, {level}"] / middle["fp32"] for level in ("nothing fused", "all"))
    made, ax = plots.canvas(
        f"Unfused int8 takes {worst:.1f} times as long as FP32, fused {best:.2f} times",
        "milliseconds a batch", figsize=(6.8, 2.6),
    )  # fmt: skip
    plots.bars_with_intervals(ax, part, form="{:.0f}")
    plots.caption(made, f"ONNX Runtime, batch {int(part['batch'].iloc[0])}; median and quartiles")
    return made


@figure("18_speed", "18_speed")
def images_per_second(speed: pd.DataFrame) -> Figure:
    """Images a second of every engine, one panel a batch size."""
    table = speed[speed["metric"] == "images_per_second"]
    sizes = [int(size) for size in sorted(table["batch"].unique())]
    leads = speed[speed["metric"] == "lead"].set_index(["method", "batch"])["value"]
    rows = table["method"].nunique()
    made, axes = plots.canvas(
        "", "images a second", "", ncols=len(sizes), figsize=(7.6, 1.0 + 0.24 * rows), sharey=False
    )
    order = list(table[table["batch"] == sizes[-1]].sort_values("value", ascending=False)["method"])
    for ax, size in zip(np.ravel(axes), sizes, strict=True):
        part = table[table["batch"] == size].set_index("method").loc[order].reset_index()
        plots.bars_with_intervals(ax, part, form="{:.0f}")
        ax.set_yticklabels([plots.look(name).label for name in order] if size == sizes[0] else [])
        ax.set_title(f"batch {size}")
        ax.margins(x=0.25)
    rival = "openvino" if ("openvino", sizes[-1]) in leads.index else "onnxruntime"
    if (rival, sizes[-1]) in leads.index:
        times, name = leads[rival, sizes[-1]], plots.look(rival).label
        made.suptitle(
            f"Our integers run at {times:.2f} times the speed of {name} at batch {sizes[-1]}",
            x=0.01, ha="left", fontsize=10, fontweight="bold",
        )  # fmt: skip
    plots.caption(made, f"median and quartiles of {int(table['n'].iloc[0])} rounds in turn")
    return made

"""Figures of notebook 18: the ingredients of speed, the roofline, the unfused graph, every engine."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure
from quantlib.study.palette import BLUE, GREY, ORANGE

ROUNDS = "lowest and highest round"
"""What the brackets of a ratio are."""


@figure("18_ingredients", "18_ingredients")
def ingredients(table: pd.DataFrame) -> Figure:
    """How many times as fast each ingredient makes one layer and the whole network, group by group."""
    times = table[table["metric"] == "speedup"]
    first = table[table["metric"] == "milliseconds"].drop_duplicates("ingredient").set_index("ingredient")
    names: list[tuple[str, str]] = []
    for ingredient, part in times.groupby("ingredient", sort=False):
        names += [(str(ingredient), ""), *((str(ingredient), str(name)) for name in part["method"].unique())]
    made, ax = plots.canvas(
        _title_of_ingredients(times), "times as fast as the group's first way (log scale)", figsize=(7.2, 5.2)
    )
    for place, colour, marker, shift, column in (
        ("layer", ORANGE, "o", 0.15, 1.02), ("network", BLUE, "s", -0.15, 1.12),
    ):  # fmt: skip
        part = times[times["place"] == place]
        rows = zip(part["ingredient"], part["method"], strict=True)
        at = [len(names) - 1 - names.index(row) + shift for row in rows]
        bars = {"xerr": plots.lengths(part), "capsize": 2}
        ax.errorbar(part["value"], at, fmt=marker, color=colour, label=place, **bars)
        for value, height in zip(part["value"], at, strict=True):  # in a column: no bar runs through it
            ax.annotate(
                f"{value:.2f}", (column, height - shift), color=colour, fontsize=8,
                xycoords=("axes fraction", "data"), va="center", annotation_clip=False,
            )  # fmt: skip
    ax.axvline(1, color="0.6", linewidth=0.8)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.minorticks_off()
    said = [name or f"{group}, against {first.at[group, 'method']}" for group, name in names[::-1]]
    ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in said])
    for label, (_, name) in zip(ax.get_yticklabels(), names[::-1], strict=True):
        label.set(color="black" if name else "0.45", fontsize=8.5 if name else 7.5)
    ax.set_ylim(-0.8, len(names) - 0.4)
    ax.legend(loc="lower right")
    rounds = " or ".join(str(n) for n in sorted(times["n"].unique(), reverse=True))
    plots.caption(made, f"median, lowest and highest of {rounds} round{'s' * (rounds != '1')}")
    return made


def _title_of_ingredients(times: pd.DataFrame) -> str:
    whole = times[times["place"] == "network"].set_index(["ingredient", "method"])["value"]
    bytes_first, hoisted = (whole.get(("zero point", way)) for way in ("corrected_each_call", "hoisted"))
    if not bytes_first or not hoisted:
        return "What each ingredient is worth"
    return (
        f"Multiplying bytes, not differences: a network {bytes_first:.1f} times as fast;\n"
        f"with the correction hoisted {hoisted:.1f} times"
    )


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
    times = table[table["metric"] == "times_of_fp32"].set_index("method")
    worst, best = (times.loc[f"qdq, {level}"] for level in ("nothing fused", "all"))
    made, ax = plots.canvas(
        f"Unfused int8 takes {worst['value']:.2f} times as long as FP32 "
        f"[{worst['low']:.2f}, {worst['high']:.2f}], fused {best['value']:.2f}",
        "milliseconds a batch", figsize=(6.8, 2.6),
    )  # fmt: skip
    plots.bars_with_intervals(ax, part, form="{:.0f}")
    told = f"median and quartiles; in brackets: {ROUNDS}"
    plots.caption(made, f"ONNX Runtime, batch {int(part['batch'].iloc[0])}; {told}")
    return made


@figure("18_speed", "18_speed")
def images_per_second(speed: pd.DataFrame) -> Figure:
    """Images a second of every engine, one panel a batch size."""
    table = speed[speed["metric"] == "images_per_second"]
    sizes = [int(size) for size in sorted(table["batch"].unique())]
    leads = speed[speed["metric"] == "lead"].set_index(["method", "batch"])
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
        lead, name = leads.loc[(rival, sizes[-1])], plots.look(rival).label
        said = f"{lead['value']:.2f} [{lead['low']:.2f}, {lead['high']:.2f}] times the speed of {name}"
        plots.set_title(made, f"Batch {sizes[-1]}: our integers run at {said}")
    rounds = plots.counted(int(table["n"].iloc[0]), "round")
    plots.caption(made, f"median and quartiles of {rounds} in turn; in brackets: {ROUNDS}")
    return made

"""Figures of notebook 09: how many bits weights and activations need, and which layer needs them most."""

import pandas as pd
from matplotlib.figure import Figure

from quantlib.quantization.metrics import rank_correlation
from quantlib.study import plots
from quantlib.study.figures.drops import drop_lines
from quantlib.study.figures.registry import figure
from quantlib.study.palette import BLUE, GREY, VERMILLION
from quantlib.study.ptq import SETTING


def part(sweep: pd.DataFrame, metric: str = "drop", **columns: object) -> pd.DataFrame:
    """The rows of a sweep at the default of every column, but for those given; None leaves a column free.

    Introduced in notebook 09.
    """
    free = {"bits_weight": None, "bits_fc": None, "bits_activation": None}
    rows = sweep[(sweep["metric"] == metric) & (sweep["method"] == "ptq")]
    for name, value in {**SETTING, **free, **columns}.items():
        if value is not None:
            rows = rows[rows[name].astype(str) == str(value)]
    return rows


def _one_width(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the rows whose linear layers have other bits than the convolutions."""
    return rows[rows["bits_weight"] == rows["bits_fc"]]


def _drops(table: pd.DataFrame, x: str, title: str, xlabel: str, remark: str = "", *, room: float) -> Figure:
    """Points lost by method over the bits in column `x`; `room` as in `drop_lines`."""
    made, ax = plots.canvas(title, xlabel, "points lost against FP32")
    drop_lines(ax, table, x, room=room, sway=0.02)
    plots.caption(made, f"n = {int(table['n'].iloc[0]):,}, paired, 95 % intervals{remark}")
    return made


@figure("09_grid", "09_sweep")
def accuracy_over_the_grid(sweep: pd.DataFrame) -> Figure:
    """Accuracy for every pair of widths of weights and activations."""
    rows = _one_width(part(sweep, "accuracy"))
    wide = rows.pivot(index="bits_weight", columns="bits_activation", values="value")
    wide = wide.sort_index(ascending=False).sort_index(axis=1, ascending=False)
    fp32 = float(sweep.loc[(sweep["method"] == "fp32") & (sweep["metric"] == "accuracy"), "value"].iloc[0])
    kept = int((wide >= fp32 - 1).to_numpy().sum())
    made, ax = plots.canvas(
        f"{kept} of {wide.size} pairs of widths stay within one point of FP32 ({fp32:.2f} %)",
        "bits of the activations", "bits of the weights", figsize=(6.5, 0.9 + 0.42 * max(len(wide), 3)),
    )  # fmt: skip
    weights, activations = ([f"{int(bits)}" for bits in side] for side in (wide.index, wide.columns))
    plots.heatmap(ax, wide.to_numpy(), weights, activations, form="{:.1f}", unit="accuracy (%)")
    plots.caption(
        made, f"n = {int(rows['n'].iloc[0]):,} test images; integer kernels, per channel, no repair"
    )
    return made


@figure("09_apart", "09_sweep")
def drop_apart_and_together(sweep: pd.DataFrame) -> Figure:
    """Points lost with the bits of weights alone, of activations alone, and of both."""
    rows = _one_width(part(sweep))
    weight, activation = rows["bits_weight"], rows["bits_activation"]
    sides = {
        "weights": rows[activation == 8].assign(bits=weight),
        "activations": rows[weight == 8].assign(bits=activation),
        "both": rows[weight == activation].assign(bits=weight),
    }
    table = pd.concat([found.assign(method=name) for name, found in sides.items()])
    low = int(table.loc[table["bits"] < 8, "bits"].max()) if (table["bits"] < 5).sum() == 0 else 4
    at = table[table["bits"] == low].set_index("method")["value"]
    title = (
        f"At {low} bits: weights alone lose {at['weights']:.1f} points, activations {at['activations']:.1f}, "
        f"both {at['both']:.1f}"
    )
    return _drops(table, "bits", title, "bits", "; the other side at 8 bits", room=0.45)


@figure("09_conventions", "09_sweep")
def drop_by_convention(sweep: pd.DataFrame) -> Figure:
    """Points lost with W and A at the same bits: per tensor, per channel, ends at 8 bits, adds in float32."""
    ways = {
        "per_tensor": part(sweep, granularity="per_tensor"),
        "per_channel": part(sweep),
        "ends_at_8": part(sweep, ends="8"),
        "adds_in_float": part(sweep, kind="mixed"),
        "adds_in_float_ends_at_8": part(sweep, kind="mixed", ends="8"),
    }
    table = pd.concat([_diagonal(found).assign(method=name) for name, found in ways.items()])
    shared = set.intersection(*(set(found["bits_weight"]) for _, found in table.groupby("method")))
    table = table[table["bits_weight"].isin(shared)]
    low = 4 if 4 in shared else min(shared)
    at = table[table["bits_weight"] == low].set_index("method")["value"]
    title = (
        f"W{low}A{low} loses {at['per_channel']:.1f} points ({at['per_tensor']:.1f} per tensor), "
        f"{at['ends_at_8']:.1f} with its ends at 8 bits,\n{at['adds_in_float']:.1f} with adds in FP32, "
        f"{at['adds_in_float_ends_at_8']:.1f} with both"
    )
    return _drops(table, "bits_weight", title, "bits of weights and activations", "; min-max, ACIQ", room=0.6)


def _diagonal(rows: pd.DataFrame) -> pd.DataFrame:
    rows = _one_width(rows)
    return rows[rows["bits_weight"] == rows["bits_activation"]]


@figure("09_observers", "09_sweep")
def drop_by_observer(sweep: pd.DataFrame) -> Figure:
    """Points lost by the observer of the activations, over their bits; weights at 8 bits."""
    rows = _one_width(part(sweep, observer_activation=None, bits_weight=8))
    counts = rows.groupby("observer_activation")["bits_activation"].agg(set)
    rows = rows[rows["bits_activation"].isin(set.intersection(*counts))]
    table = rows.assign(method=rows["observer_activation"])
    low = int(table["bits_activation"].min())
    at = table[table["bits_activation"] == low].set_index("method")["value"].sort_values()
    first, last = (plots.look(str(name)).label for name in (at.index[0], at.index[-1]))
    title = f"Activations at {low} bits: {first} loses {at.iloc[0]:.1f} points, {last} {at.iloc[-1]:.1f}"
    return _drops(table, "bits_activation", title, "bits of the activations (weights: 8)", room=0.55)


@figure("09_sensitivity", "09_sensitivity")
def ranked_layers(sensitivity: pd.DataFrame) -> Figure:
    """Layers by what it costs that each alone has few bits, and how well SQNR foretells it."""
    low = sensitivity["bits_weight"].min()
    rows = sensitivity[sensitivity["bits_weight"] == low]
    wide = rows.pivot(index="layer", columns="metric", values="value")
    wide = wide.sort_values("loss_rise", ascending=False)
    share = wide["loss_rise"].clip(lower=0).nlargest(3).sum() / wide["loss_rise"].clip(lower=0).sum()
    rho = rank_correlation(-wide["output_sqnr_db"], wide["loss_rise"])
    title = (
        f"Three layers make {100 * share:.0f} % of the loss at {low} bits; SQNR ranks with rho = {rho:.2f}"
    )
    made, (left, right) = plots.canvas(title, ncols=2, width_ratios=[1.25, 1], figsize=(7.4, 3.4))
    first = wide.head(12)[::-1]
    left.barh(range(len(first)), first["loss_rise"], color=BLUE, height=0.65)
    left.set_yticks(range(len(first)), first.index, fontsize=7.5)
    left.set_xlabel("rise of the cross-entropy (nats)")
    left.grid(axis="y", visible=False)
    right.scatter(wide["output_sqnr_db"], wide["loss_rise"], s=16, color=BLUE)
    right.set_yscale("symlog", linthresh=1e-3)
    for name, height in first[::-1].head(1)["loss_rise"].items():
        right.annotate(str(name), (wide.loc[name, "output_sqnr_db"], height), xytext=(5, -3),
                       textcoords="offset points", fontsize=7.5, color=VERMILLION)  # fmt: skip
    right.axhline(0, color=GREY, linewidth=0.8)
    right.set(xlabel="SQNR of the layer's output (dB)", ylabel="rise (nats)")
    n = int(rows["n"].max())
    plots.caption(
        made, f"weight of one layer alone at {low} bits, the {len(first)} worst of {len(wide)}; n = {n:,}"
    )
    return made

"""Figures of notebook 10: what each rescue method wins back, where, and at what price."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.drops import drop_points
from quantlib.study.figures.registry import figure
from quantlib.study.palette import BLUE, GREY, ORANGE, VERMILLION


def drops_of(table: pd.DataFrame, **columns: object) -> pd.DataFrame:
    """The rows of metric "drop" with these values in these columns."""
    rows = table[table["metric"] == "drop"]
    for name, value in columns.items():
        rows = rows[rows[name].astype(str) == str(value)]
    return rows


@figure("10_equalization", "10_equalization")
def badly_scaled(table: pd.DataFrame) -> Figure:
    """Points lost by the network as trained and badly scaled, each plain and equalized."""
    bits = table[["bits_weight", "bits_activation"]].drop_duplicates().to_numpy(int).tolist()
    w, a = bits[-1]
    rows = drops_of(table, bits_weight=w, bits_activation=a)
    wide = rows.set_index(["spread", "method"])["value"].unstack()
    as_trained, scaled = wide.index.min(), wide.index.max()
    title = (
        f"W{w}A{a}, badly scaled: {wide.loc[scaled, 'nearest']:.1f} points lost, "
        f"{wide.loc[scaled, 'equalization']:.1f} after equalization"
    )
    made, ax = plots.canvas(title, "points lost against FP32", figsize=(6.5, 2.6))
    order = [(as_trained, "as trained"), (scaled, f"channels scaled by up to {scaled:g}")]
    for place, (spread, _) in zip((1, 0), order, strict=True):
        for shift, method in ((0.14, "nearest"), (-0.14, "equalization")):
            row = rows[(rows["spread"] == spread) & (rows["method"] == method)].iloc[0]
            face = plots.look(method)
            ax.plot([row["low"], row["high"]], [place + shift] * 2, color=face.colour, linewidth=2)
            ax.plot(row["value"], place + shift, color=face.colour, marker=face.marker)
            ax.annotate(
                face.label, (max(row["high"], row["value"]), place + shift), xytext=(6, 0), fontsize=8,
                textcoords="offset points", va="center", color=face.colour,
            )  # fmt: skip
    ax.axvline(0, color=plots.colour("fp32"), linewidth=1)
    ax.set_yticks((1, 0), [text for _, text in order])
    ax.set_ylim(-0.5, 1.5)
    ax.margins(x=0.3)
    ax.grid(axis="y", visible=False)
    plots.caption(made, f"n = {int(rows['n'].max()):,}, paired, 95 % intervals")
    return made


@figure("10_ladder", "10_ladder")
def ladder(table: pd.DataFrame) -> Figure:
    """Points lost by every method at the lowest pair of widths, with the minutes it takes."""
    keys = table[["bits_weight", "bits_activation"]].drop_duplicates().to_numpy(int).tolist()
    w, a = min(keys)
    here = (table["bits_weight"] == w) & (table["bits_activation"] == a)
    minutes = table[here & (table["metric"] == "minutes")].set_index("method")["value"]
    rows = drops_of(table[here])
    rows = rows.assign(minutes=rows["method"].map(minutes))
    seen = table[here & (table["metric"] == "accuracy_validation")].set_index("method")["value"]
    nearest = seen.index.str.startswith("nearest")
    lost, best = rows.set_index("method")["value"], str(seen[~nearest].idxmax())  # chosen as in the notebook
    title = (
        f"W{w}A{a}: nearest rounding loses {lost[seen[nearest].idxmax()]:.1f} points,\n"
        f"{plots.look(best).label} {lost[best]:.1f}"
    )
    return drop_points(rows, title, "; adds in FP32, ends at 8 bits")


MANY = 20
"""Units beyond which their names do not fit beside each other: those that learn layer by layer."""


def fallen(ax: Axes, before: pd.Series, after: pd.Series, labels: tuple[str, str]) -> None:
    """A point for what was and one for what is, for each name in the index, on a logarithmic scale."""
    places, last = np.arange(len(before)), len(before) - 1
    ax.vlines(places, after, before, color=GREY, linewidth=1)
    for values, text, colour, up in zip((before, after), labels, (GREY, BLUE), (5, -5), strict=True):
        ax.plot(places, values, "o", color=colour, linestyle="none")
        ax.annotate(
            text, (last, values.iloc[-1]), xytext=(8, up), textcoords="offset points", color=colour,
            va="center", fontsize=8.5, fontweight="bold",
        )  # fmt: skip
    ax.set_yscale("log")
    ax.set_xlim(-0.5, last + 0.5 + 0.18 * len(before))
    if len(places) <= MANY:
        ax.set_xticks(places, list(before.index), rotation=60, ha="right", fontsize=7.5)
    else:
        ax.set_xticks([])
        ax.set_xlabel("from the image (left) to the classifier (right)")


@figure("10_units", "10_units")
def error_of_units(table: pd.DataFrame) -> Figure:
    """Relative error of each unit, before and after it was learned, where there was most to learn."""
    before = table[table["metric"] == "error_before"].groupby("target", sort=False)["value"].mean()
    rows = table[table["target"] == before.idxmax()]
    wide = rows.pivot(index="unit", columns="metric", values="value").loc[list(dict.fromkeys(rows["unit"]))]
    better = float(np.exp(np.log(wide["error_before"] / wide["error_after"]).mean()))
    units = "blocks" if len(wide) <= MANY else "layers"
    made, ax = plots.canvas(
        f"{_said(rows['target'].iloc[0])}: errors of {units} fall {better:.2f}-fold (geometric mean)", "",
        "squared error / squared output",
    )  # fmt: skip
    fallen(ax, wide["error_before"], wide["error_after"], ("rounded", "learned"))
    plots.caption(made, "on the calibration images, which the units were learned on")
    return made


@figure("10_allocation", "10_allocation")
def bits_by_layer(table: pd.DataFrame) -> Figure:
    """The bits that each weight and each activation got, in the order of the network."""
    made, axes = plots.canvas("", "", "bits", nrows=2, figsize=(6.5, 4.2))
    for ax, part, colour in zip(axes, ("weight", "activation"), (BLUE, ORANGE), strict=True):
        rows = table[(table["method"] == part) & (table["metric"] == "bits")]
        size = rows["count"].to_numpy(float)
        mean = float((size * rows["value"]).sum() / size.sum())
        ax.bar(np.arange(len(rows)), rows["value"], color=colour, width=0.8)
        ax.axhline(mean, color=VERMILLION, linewidth=1, linestyle="--")
        ax.set_title(
            f"{part}s: {mean:.2f} bits on average, {rows['value'].min():.0f} to {rows['value'].max():.0f}"
        )
        ax.set_xticks([])
        ax.set_ylim(0, 8.5)
    axes[1].set_xlabel("layers from the image (left) to the classifier (right)")
    plots.caption(made, "averages weighted by the number of values")
    return made


@figure("10_targets", "10_targets")
def targets(table: pd.DataFrame) -> Figure:
    """Points lost at every setting of bits, nearest and rescued, in the papers' convention."""
    rows = drops_of(table)
    rows = rows[rows["kind"] != "integer"]
    names = list(dict.fromkeys(rows["target"]))
    wanted = rows.drop_duplicates("target").set_index("target")["wanted"]
    kept = rows[rows["role"] == "rescued"].set_index("target")
    met = int((kept.loc[names, "value"] <= wanted.loc[names]).sum())  # what has no goal cannot meet it
    sure = int((kept.loc[names, "high"] <= wanted.loc[names]).sum())
    made, ax = plots.canvas(
        f"{met} of {int(wanted.notna().sum())} goals met, {sure} of them with the whole interval",
        "points lost against FP32",
        figsize=(6.5, 1.2 + 0.42 * len(names)),
    )
    _both_roles(ax, rows, names, wanted)
    _finish_targets(ax, rows, names)
    plots.caption(
        made,
        "squares: nearest rounding, dots: rescued, upright strokes: the goal; "
        f"n = {int(rows['n'].max()):,}, paired, 95 % intervals; scale linear up to 1",
    )
    return made


def _both_roles(ax: Axes, rows: pd.DataFrame, names: list[str], wanted: pd.Series) -> None:
    """For each target a square for nearest rounding, a dot for the rescued network, a stroke for the goal."""
    for place, name in zip(np.arange(len(names))[::-1], names, strict=True):
        for role, colour, marker, shift in (("nearest", GREY, "s", 0.13), ("rescued", BLUE, "o", -0.13)):
            row = rows[(rows["target"] == name) & (rows["role"] == role)].iloc[0]
            ax.plot([row["low"], row["high"]], [place + shift] * 2, color=colour, linewidth=2)
            ax.plot(row["value"], place + shift, marker, color=colour, markersize=6)
            if role == "rescued":
                ax.annotate(
                    f"{row['value']:+.2f}", (max(row["high"], row["value"]), place + shift), xytext=(6, 0),
                    textcoords="offset points", va="center", fontsize=8, color=colour,
                )  # fmt: skip
        if np.isfinite(wanted[name]):
            ax.plot([wanted[name]] * 2, [place - 0.32, place + 0.32], color=VERMILLION, linewidth=1.5)


def _finish_targets(ax: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    """Scale, ticks, names."""
    ax.set_xscale("symlog", linthresh=1)
    low, high = rows["low"].min(), rows["high"].max()
    ticks = [tick for tick in (-50, -20, -5, -2, -1, 0, 1, 2, 5, 20, 50) if low <= tick <= high]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.axvline(0, color=plots.colour("fp32"), linewidth=1)
    ax.set_yticks(np.arange(len(names))[::-1], [_said(name) for name in names])
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.margins(x=0.12)
    ax.grid(axis="y", visible=False)


def _said(target: str) -> str:
    """ "w4a4" as people write it; other names as they are."""
    return target.upper() if target.startswith("w") else target

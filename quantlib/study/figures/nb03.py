"""Figures of notebook 03: observers of activations, beside the true optimum and on the network."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.drops import drop_lines
from quantlib.study.figures.registry import figure

ORDER = ["mse", "percentile", "histogram", "aciq", "entropy", "moving_average", "minmax"]
"""Observers from the bottom of the figure up."""


@figure("03_layers", "03_observers")
def behind_the_optimum(observers: pd.DataFrame) -> Figure:
    """How many decibels each observer stays behind the best range, one dot a layer, one panel a bit-width."""
    wide = observers.pivot(index=["bits_activation", "layer"], columns="method", values="value")
    behind = wide[ORDER].rsub(wide["optimum"], axis=0).clip(lower=0)
    bits = sorted(wide.index.get_level_values(0).unique(), reverse=True)
    made, axes = plots.canvas(
        "", "dB behind the optimum", "", ncols=len(bits), sharey=True, squeeze=False, figsize=(7.4, 3.6)
    )
    for ax, width in zip(axes[0], bits, strict=True):
        _dots(ax, behind.loc[width])
        ax.set_title(f"{width} bits")
    axes[0][0].set_yticks(range(len(ORDER)), [plots.look(name).label for name in ORDER])
    low = behind.loc[min(bits)].median()
    plots.set_title(
        made,
        f"At {min(bits)} bits min-max gives away {low['minmax']:.1f} dB, histogram {low['histogram']:.1f}, "
        f"the search {low['mse']:.2f}",
    )
    plots.caption(
        made, f"{len(behind.loc[width])} places of the network; bar: median; scale linear up to 1 dB"
    )
    return made


def _dots(ax: Axes, behind: pd.DataFrame) -> None:
    shift = np.random.default_rng(0).uniform(-0.22, 0.22, len(behind))
    for place, name in enumerate(ORDER):
        ax.scatter(behind[name], place + shift, s=9, color=plots.colour(name), alpha=0.6, linewidth=0)
        ax.vlines(behind[name].median(), place - 0.36, place + 0.36, color=plots.colour(name), linewidth=2.4)
    ax.set_xscale("symlog", linthresh=1.0)
    ax.set_xlim(-0.1, 40)
    ax.set_xticks([0, 1, 10], ["0", "1", "10"])
    ax.grid(axis="x", visible=True)


@figure("03_accuracy", "03_accuracy")
def accuracy_by_bits(accuracy: pd.DataFrame) -> Figure:
    """Accuracy lost over the bits of the activations, one line an observer."""
    table = accuracy[(accuracy["metric"] == "drop") & (accuracy["split"] == "validation")]
    least = int(table["bits_activation"].min())
    low = table[table["bits_activation"] == least].set_index("method")["value"]
    made, ax = plots.canvas(
        f"At {least} bits the observer decides: {low.min():+.1f} to {low.max():+.1f} points lost",
        "bits of the activations (weights: 8, per channel)",
        "accuracy against FP32 (points lost)",
    )
    drop_lines(ax, table, "bits_activation", room=0.35)
    n = int(table["n"].max())
    plots.caption(made, f"n = {n:,} validation images, paired 95 % intervals; int8 kernels, adds in float32")
    return made


@figure("03_calibration", "03_calibration")
def drop_by_images(calibration: pd.DataFrame) -> Figure:
    """Accuracy drop over the number of calibration images: a dot a draw, their mean as a line."""
    settings = list(calibration.groupby(["method", "bits_activation"], sort=False))
    made, axes = plots.canvas("", "calibration images", "", ncols=len(settings), figsize=(7.4, 3.4))
    told = []
    for ax, ((name, bits), part) in zip(np.ravel(axes), settings, strict=True):
        mean = part.groupby("images")["value"].mean()
        ax.scatter(part["images"], part["value"], s=18, color=plots.colour(name), alpha=0.55, linewidth=0)
        ax.plot(mean.index, mean.to_numpy(), color=plots.colour(name))
        ax.axhline(0, color=plots.colour("fp32"), linestyle="--", linewidth=1)
        ax.set_xscale("log", base=4)
        ax.set_xticks(list(mean.index), [f"{int(size):,}" for size in mean.index])
        ax.minorticks_off()
        ax.set_title(f"{plots.look(name).label}, {bits} bits")
        told.append(f"{bits} bits: {part['value'].min():.1f} to {part['value'].max():.1f} points lost")
    np.ravel(axes)[0].set_ylabel("drop against FP32 (points)")
    title = f"Over sizes and draws, {'; '.join(told)}"
    plots.set_title(made, title)
    draws, n = calibration["seed"].nunique(), int(calibration["n"].max())
    plots.caption(made, f"{draws} draws of training images; n = {n:,} validation images")
    return made

"""Images a second of rivals in one run: the drawing that several notebooks share."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots


def speed_panels(speed: pd.DataFrame, title: str, hero: str) -> Figure:
    """One panel a batch size, one bar a method with its quartiles; `hero` is compared with FP32 above each.

    speed: columns method, batch, metric (images_per_second, speedup), value, low, high, n.
    """
    table = speed[speed["metric"] == "images_per_second"]
    ratios = speed[speed["metric"] == "speedup"].set_index(["method", "batch"])["value"]
    sizes = sorted(table["batch"].unique())
    made, axes = plots.canvas("", "images a second", "", ncols=len(sizes), figsize=(7.4, 2.8))
    for ax, size in zip(np.ravel(axes), sizes, strict=True):
        part = table[table["batch"] == size].reset_index(drop=True)
        plots.bars_with_intervals(ax, part, form="{:.0f}")
        names = [plots.look(name).label for name in part["method"]]
        ax.set_yticklabels(names if size == sizes[0] else [])
        ax.set_title(f"batch {int(size)}: {plots.look(hero).label} {ratios[hero, size]:.1f} times FP32")
        ax.margins(x=0.2)
    plots.set_title(made, title)
    plots.caption(made, f"median and quartiles of {plots.counted(int(table['n'].iloc[0]), 'round')} in turn")
    return made

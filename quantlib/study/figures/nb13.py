"""Figures of notebook 13: what shared values cost in accuracy, and look-ups in time."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.drops import drop_lines
from quantlib.study.figures.registry import figure


@figure("13_accuracy", "13_accuracy")
def drop_over_shared_values(accuracy: pd.DataFrame) -> Figure:
    """Points lost over the bits of an index: codebooks with norms measured anew, and grids."""
    drops = accuracy[accuracy["metric"] == "drop"]
    rows = drops[(drops["norms"] == "new") | drops["method"].str.startswith("grid")]
    table = rows.assign(bits=np.log2(rows["clusters"]).astype(int))
    at = table[table["clusters"] == 16].set_index("method")["value"]
    before = drops[(drops["norms"] == "old") & (drops["clusters"] == 16)].set_index("method")["value"]
    title = (
        f"16 values lose {before['linear']:.1f} points as a codebook a layer "
        f"({at['linear']:.1f} with new norms),\n{at['grid_per_channel']:.1f} as a searched grid a channel, "
        f"{at['grid_per_tensor']:.1f} as one a layer"
    )
    made, ax = plots.canvas(title, "bits of an index (log2 of the values)", "points lost against FP32")
    drop_lines(ax, table, "bits", room=0.5, sway=0.02)
    n = int(table["n"].iloc[0])
    told = "codebooks with batch norms measured anew, grids without"
    plots.caption(made, f"n = {n:,}, paired, 95 % intervals; {told}")
    return made


@figure("13_lookup", "13_lookup")
def time_against_int8(lookup: pd.DataFrame) -> Figure:
    """Times of the look-ups as multiples of int8's, at each number of positions."""
    rows = lookup[lookup["metric"] == "time_against_int8"]
    sizes = sorted(rows["positions"].unique())
    look_ups = rows[rows["method"].str.startswith("look_up")]
    at = look_ups.groupby("positions")["value"].min()
    made, axes = plots.canvas(
        f"The faster look-up takes {at[sizes[0]]:.1f} times as long as int8 at one position, "
        f"{at[sizes[-1]]:.1f} times at {sizes[-1]}",
        "times the time of int8", ncols=len(sizes), figsize=(7.2, 2.6),
    )  # fmt: skip
    for ax, size in zip(np.ravel(axes), sizes, strict=True):
        plots.bars_with_intervals(ax, rows[rows["positions"] == size], form="{:.1f}")
        ax.axvline(1, color=plots.colour("int8"), linewidth=1, linestyle="--")
        ax.set_title(f"{size} position{'s' if size > 1 else ''}", fontsize=9, fontweight="normal")
        ax.margins(x=0.2)
    rounds = int(rows["n"].iloc[0])
    plots.caption(
        made, f"median of {rounds} rounds and its 95 % interval; 1x1 layer, 512 inputs, 2,048 outputs"
    )
    return made

"""Figures of notebook 12: what training finds again in a pruned network, by what it starts from."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure


@figure("12_tickets", "12_tickets")
def accuracy_by_start(tickets: pd.DataFrame) -> Figure:
    """Points lost against the dense network over the share of weights left, a line an arm, a dot a seed."""
    means = tickets[(tickets["metric"] == "drop") & (tickets["method"] != "dense")]
    single = tickets[tickets["metric"] == "drop_of_seed"]
    few = means["left"].min()
    at = means[means["left"] == few].set_index("method")["value"]
    made, ax = plots.canvas(
        f"With {few:.0%} of the weights a new start loses {at['reinitialized']:.1f} points, a ticket "
        f"{at['ticket']:.1f},\nrewound {at['rewound']:.1f}, retrained {at['retrained']:.1f}",
        "weights left (%)", "points lost against the dense network",
    )  # fmt: skip
    levels = sorted(means["left"].unique(), reverse=True)
    methods = list(means["method"].drop_duplicates())
    ends = {}
    for method, shift in zip(methods, np.linspace(-0.12, 0.12, len(methods)), strict=True):
        part, face = means[means["method"] == method].set_index("left").loc[levels], plots.look(method)
        places = np.arange(len(levels)) + shift
        last = plots.line_with_bars(ax, places, part, face, linewidth=1.2, zorder=3)
        for place, left in zip(places, levels, strict=True):
            dots = single[(single["method"] == method) & (single["left"] == left)]["value"]
            ax.scatter([place + 0.05] * len(dots), dots, s=7, color="black", linewidth=0, zorder=4)
        ends[method] = (len(levels) - 1 + 0.2, last)
    ax.plot([-0.3, len(levels) - 0.85], [0, 0], color=plots.colour("dense"), linewidth=1, linestyle="--")
    ax.set_xticks(range(len(levels)), [f"{100 * left:g}" for left in levels])
    ax.set_xlim(-0.3, len(levels) - 1 + max(1.0, 0.45 * len(levels)))
    ax.invert_yaxis()
    plots.label_lines(ax, ends)
    seeds, n = int(means["seeds"].max()), int(means["n"].max())
    plots.caption(made, f"ResNet-20, n = {n:,} test images, up to {seeds} seeds (black dots); 95 % intervals")
    return made

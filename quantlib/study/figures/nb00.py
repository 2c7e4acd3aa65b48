"""Figures of notebook 00: the study's result in one picture."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure
from quantlib.study.palette import BLUE, ORANGE

DROPS = {
    "w8a8_drop": "int8 in float32",
    "w8a8_torch_ao_drop": "torch.ao's int8,\n7-bit activations",
    "int8_drop": "integers only",
    "w4a8_drop": "weights 4 bits",
    "w4a4_drop": "4 bits",
}
"""Headline figures of accuracy and their labels, in the order of the picture; no other is drawn."""
TIMES = {
    "mixed_speedup_b64": "int8 in float32,\nbatch 64",
    "torch_ao_speedup_b64": "torch.ao's int8,\nbatch 64",
    "int8_speedup_b64": "integers only,\nbatch 64",
    "calibration_speedup_vs_torch_ao": "calibration,\nagainst torch.ao",
}
"""Headline figures of speed and size and their labels, in order."""


@figure("00_result", "headline")
def result(headline: pd.DataFrame) -> Figure:
    """Accuracy lost (points) and what is gained (times); what is not recorded is left out."""
    rows = headline.drop_duplicates("name", keep="last").set_index("name")
    drawn, (left, right) = plots.canvas(_title(rows), ncols=2, figsize=(6.5, 2.8), width_ratios=(1.15, 1))
    _dots(left, rows, DROPS, "{:+.2f}")
    left.axvline(0, color="0.5", linewidth=1)
    left.set_xlabel("accuracy lost (points)")
    _dots(right, rows, TIMES, "{:.1f}x")
    right.axvline(1, color="0.5", linewidth=1)
    right.set_xlim(left=0)
    right.set_xlabel("times as fast (as eager FP32)")
    if "fp32_accuracy" in rows.index:
        base = rows.loc["fp32_accuracy"]
        plots.caption(
            drawn,
            f"FP32: {base['value']:.2f} % [{base['low']:.2f}, {base['high']:.2f}], n = {int(base['n']):,} "
            "test images, the same for every loss\n"
            "lines: 95 % intervals; for times, the range over all rounds",
        )
    return drawn


def _title(rows: pd.DataFrame) -> str:
    """The finding, as far as it is recorded: integers throughout before integers inside a float network."""
    for what, loss, gain in (
        ("Integers alone", "int8_drop", "int8_speedup_b64"),
        ("Eight bits", "w8a8_drop", "mixed_speedup_b64"),
    ):
        if {loss, gain} <= set(rows.index):
            drop, speed = rows.at[loss, "value"], rows.at[gain, "value"]
            change = f"cost {drop:.2f} points" if drop > 0 else f"change accuracy by {0 - drop:+.2f} points"
            return f"{what} {change} and run {speed:.1f} times as fast"
    return "What the study has recorded so far"


def _dots(ax: Axes, rows: pd.DataFrame, labels: dict[str, str], form: str) -> None:
    """One dot with its interval a line, its number above it."""
    known = [name for name in labels if name in rows.index]
    if not known:
        ax.text(0.5, 0.5, "not recorded yet", ha="center", va="center", color="0.5", transform=ax.transAxes)
    for place, name in enumerate(reversed(known)):
        value, low, high = rows.loc[name, ["value", "low", "high"]].astype(float)
        ends = [value, value] if np.isnan(low) else [low, high]
        paint = ORANGE if name in ("w8a8_torch_ao_drop", "torch_ao_speedup_b64") else BLUE
        ax.plot(ends, [place, place], color=paint, linewidth=2)
        ax.plot(value, place, "o", color=paint)
        offset: dict[str, Any] = {"xytext": (0, 7), "textcoords": "offset points"}
        ax.annotate(form.format(value), (value, place), ha="center", fontsize=8.5, **offset)
    ax.set_yticks(range(len(known)), [labels[name] for name in reversed(known)])
    ax.set_ylim(-0.6, max(len(known), 1) - 0.3)
    ax.margins(x=0.25)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)

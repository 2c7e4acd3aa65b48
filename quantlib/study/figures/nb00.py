"""Figures of notebook 00: the study's result in one picture."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.registry import figure
from quantlib.study.palette import BLUE, ORANGE

# The order is the order in the picture; a headline figure that is not named here is not drawn.
DROPS = {
    "w8a8_drop": "8 bits (this library)",
    "w8a8_torch_ao_drop": "8 bits (torch.ao)",
    "integer_drop": "8 bits, integers only",
    "w4a8_drop": "weights 4 bits",
    "w4a4_drop": "4 bits",
}
TIMES = {
    "mixed_speedup_b64": "int8 inference, batch 64",
    "calibration_speedup_vs_torch_ao": "calibration, against torch.ao",
    "mixed_size_ratio": "smaller file",
}


@figure("00_result", "headline")
def result(headline: pd.DataFrame) -> Figure:
    """Accuracy lost (points) and what is gained (times), from headline.csv; what is not recorded is left out."""
    rows = headline.drop_duplicates("name", keep="last").set_index("name")
    drawn, (left, right) = plots.canvas(_title(rows), ncols=2, figsize=(6.5, 2.8), width_ratios=(1.15, 1))
    _dots(left, rows, DROPS, "{:+.2f}")
    left.axvline(0, color="0.5", linewidth=1)
    left.set_xlabel("accuracy lost (percentage points)")
    _dots(right, rows, TIMES, "{:.1f}x")
    right.axvline(1, color="0.5", linewidth=1)
    right.set_xlabel("gained against FP32 or torch.ao (times)")
    if "fp32_accuracy" in rows.index:
        base = rows.loc["fp32_accuracy"]
        plots.caption(
            drawn,
            f"FP32: {base['value']:.2f} % [{base['low']:.2f}, {base['high']:.2f}], n = {int(base['n']):,} "
            "test images; losses on the same images; bars: 95 % interval, range over rounds for times",
        )
    return drawn


def _title(rows: pd.DataFrame) -> str:
    """The finding, as far as it is recorded."""
    if {"w8a8_drop", "mixed_speedup_b64"} <= set(rows.index):
        drop, speed = rows.at["w8a8_drop", "value"], rows.at["mixed_speedup_b64", "value"]
        change = f"costs {drop:.2f} points" if drop > 0 else f"changes accuracy by {-drop:+.2f} points"
        return f"Eight bits {change} and runs {speed:.1f} times as fast"
    return "What the study has recorded so far"


def _dots(ax: Axes, rows: pd.DataFrame, labels: dict[str, str], form: str) -> None:
    """One dot with its interval a line, its number above it."""
    known = [name for name in labels if name in rows.index]
    if not known:
        ax.text(0.5, 0.5, "not recorded yet", ha="center", va="center", color="0.5", transform=ax.transAxes)
    for place, name in enumerate(reversed(known)):
        value, low, high = rows.loc[name, ["value", "low", "high"]].astype(float)
        ends = [value, value] if np.isnan(low) else [low, high]
        ax.plot(ends, [place, place], color=ORANGE if "torch_ao_drop" in name else BLUE, linewidth=2)
        ax.plot(value, place, "o", color=ORANGE if "torch_ao_drop" in name else BLUE)
        ax.annotate(form.format(value), (value, place), xytext=(0, 7), textcoords="offset points", ha="center",
                    fontsize=8.5)  # fmt: skip
    ax.set_yticks(range(len(known)), [labels[name] for name in reversed(known)])
    ax.set_ylim(-0.6, max(len(known), 1) - 0.3)
    ax.margins(x=0.2)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)

"""How the course draws: one style, one colour per method, direct labels, intervals, titles that state the finding."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlib.errors import StudyError
from quantlib.study.results import write_atomic

STYLE = Path(__file__).with_name("quantlib.mplstyle")


@dataclass(frozen=True)
class Look:
    """A method's colour, marker and name in every figure of the course."""

    colour: str
    marker: str
    label: str


# Okabe and Ito's colours, which people with any colour vision tell apart; their yellow is too light on white and
# is replaced by wine. Methods of one colour never meet in one figure; the marker tells them apart besides.
GREY, BLACK, BLUE, SKY, GREEN = "#7f7f7f", "#000000", "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILLION, PURPLE, WINE = "#E69F00", "#D55E00", "#CC79A7", "#882255"
METHODS: dict[str, Look] = {
    "fp32": Look(GREY, "o", "FP32"),
    "optimum": Look(BLACK, "*", "optimum"),
    "minmax": Look(VERMILLION, "s", "min-max"),
    "moving_average": Look(ORANGE, "D", "moving average"),
    "percentile": Look(PURPLE, "^", "percentile"),
    "histogram": Look(SKY, "v", "histogram"),
    "mse": Look(BLUE, "o", "mean squared error"),
    "entropy": Look(GREEN, "P", "entropy"),
    "aciq": Look(WINE, "X", "ACIQ"),
    "per_tensor": Look(VERMILLION, "s", "per tensor"),
    "per_channel": Look(BLUE, "o", "per channel"),
    "weights": Look(BLUE, "o", "weights"),
    "activations": Look(ORANGE, "D", "activations"),
    "symmetric": Look(VERMILLION, "s", "symmetric"),
    "affine": Look(BLUE, "o", "affine"),
    "narrow_range": Look(BLUE, "o", "-127 to 127"),
    "full_range": Look(VERMILLION, "s", "-128 to 127"),
    "after_relu": Look(BLUE, "o", "after ReLU"),
    "before_relu": Look(VERMILLION, "s", "before ReLU"),
    "before_and_after_relu": Look(WINE, "X", "before and after ReLU"),
    "simulated": Look(SKY, "v", "simulated"),
    "mixed": Look(BLUE, "o", "mixed"),
    "integer": Look(GREEN, "P", "integer"),
    "torch_ao": Look(ORANGE, "D", "torch.ao"),
    "fp32_compiled": Look(BLACK, "d", "FP32 compiled"),
    "onnxruntime": Look(PURPLE, "^", "ONNX Runtime"),
}


def look(method: str) -> Look:
    """The look of a method; StudyError says where to add one that is not there."""
    if method not in METHODS:
        raise StudyError(f"No colour is set for the method {method!r}; add it to METHODS in quantlib/study/plots.py.")
    return METHODS[method]


def colour(method: str) -> str:
    """The one colour of a method."""
    return look(method).colour


def use_style() -> None:
    """Set the course's style for every figure that follows."""
    plt.style.use(STYLE)


@contextmanager
def style() -> Iterator[None]:
    """The course's style inside a `with` block only."""
    with plt.style.context(["default", STYLE]):
        yield


def canvas(title: str = "", xlabel: str = "", ylabel: str = "", **subplots: Any) -> tuple[Figure, Any]:
    """A figure in the course's style and its axes (an array when rows or columns are asked for).

    The title states the finding; the labels carry the units.
    """
    with style():
        figure, axes = plt.subplots(**subplots)
    first = axes if isinstance(axes, Axes) else np.ravel(axes)[0]
    if isinstance(axes, Axes):
        first.set_title(title)
    elif title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    for ax in [axes] if isinstance(axes, Axes) else np.ravel(axes):
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
    return figure, axes


def lines_with_intervals(ax: Axes, table: pd.DataFrame, x: str, by: str = "method", label: bool = True) -> None:
    """One line a method over column `x` (columns value, low, high), its interval as a band, its name at its end."""
    ends: dict[str, tuple[float, float]] = {}
    for method in table[by].drop_duplicates():
        part = table[table[by] == method].sort_values(x)
        face = look(str(method))
        ax.plot(part[x], part["value"], color=face.colour, marker=face.marker, zorder=3)
        if part["low"].notna().any():
            ax.fill_between(part[x], part["low"], part["high"], color=face.colour, alpha=0.18, linewidth=0)
        ends[str(method)] = (float(part[x].iloc[-1]), float(part["value"].iloc[-1]))
    if label:
        label_lines(ax, ends)


def label_lines(ax: Axes, ends: Mapping[str, tuple[float, float]], gap: float = 12.0) -> None:
    """Write each method's name beside the end of its line, moved apart so that no two overlap.

    `ends` maps a method to the data coordinates of its line's end; `gap` is the least distance in points.
    Call it after the limits and scales of the axes are final.
    """
    if not ends:
        return
    ax.figure.draw_without_rendering()
    scale = ax.figure.dpi / 72.0
    at = {method: ax.transData.transform(point)[1] / scale for method, point in ends.items()}
    order = sorted(at, key=lambda method: (at[method], method))
    placed = spread([at[method] for method in order], gap)
    for method, height in zip(order, placed, strict=True):
        face = look(method)
        ax.annotate(face.label, ends[method], xytext=(7, height - at[method]), textcoords="offset points",
                    color=face.colour, va="center", fontsize=8.5, fontweight="bold", annotation_clip=False)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move sorted heights apart until neighbours are `gap` away, each group staying around its own mean."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _top(groups[-2], gap) + gap > _bottom(groups[-1], gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_bottom(group, gap) + gap * place for group in groups for place in range(len(group))]


def bars_with_intervals(ax: Axes, table: pd.DataFrame, by: str = "method", form: str = "{:.2f}") -> None:
    """One horizontal bar a row (columns value, low, high), first row on top, its number and interval at its end."""
    names = [str(name) for name in table[by]]
    faces = [METHODS.get(name, Look(BLUE, "o", name)) for name in names]
    places = np.arange(len(names))[::-1]
    values = table["value"].to_numpy(float)
    ax.barh(places, values, color=[face.colour for face in faces], height=0.62, zorder=2)
    low, high = table["low"].to_numpy(float), table["high"].to_numpy(float)
    known = ~np.isnan(low)
    errors = np.abs(np.vstack([values - low, high - values]))[:, known]
    ax.errorbar(values[known], places[known], xerr=errors, fmt="none", ecolor="0.15", elinewidth=1.0, zorder=3)
    for place, value, edge in zip(places, values, np.where(known, np.maximum(high, values), values), strict=True):
        ax.annotate(form.format(value), (max(edge, 0.0), place), xytext=(4, 0), textcoords="offset points",
                    va="center", fontsize=8.5)
    ax.set_yticks(places, [face.label for face in faces])
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    ax.margins(x=0.12)


def histograms(ax: Axes, series: Mapping[str, np.ndarray], bins: int = 120, log: bool = False) -> None:
    """Outlined densities of several arrays over the same bins, each named at its peak."""
    arrays = {name: np.asarray(values, dtype=float).ravel() for name, values in series.items()}
    low = min(values.min() for values in arrays.values())
    high = max(values.max() for values in arrays.values())
    edges = np.linspace(low, high, bins + 1)
    for place, (name, values) in enumerate(arrays.items()):
        face = METHODS.get(name, Look(f"C{place}", "o", name))
        density, _ = np.histogram(values, edges, density=True)
        ax.stairs(density, edges, color=face.colour, fill=True, alpha=0.25)
        ax.stairs(density, edges, color=face.colour, linewidth=1.3)
        peak = int(density.argmax())
        ax.annotate(face.label, (edges[peak], density[peak]), xytext=(6, -2), textcoords="offset points",
                    color=face.colour, fontweight="bold", fontsize=8.5)
    if log:
        ax.set_yscale("log")


def heatmap(ax: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str],
            form: str = "{:.1f}", unit: str = "") -> None:
    """A grid of numbers, each written in its cell, with a colour bar that carries the unit."""
    grid = np.asarray(values, dtype=float)
    picture = ax.imshow(grid, aspect="auto")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (down, across), value in np.ndenumerate(grid):
        ink = "white" if value < middle else "black"
        ax.text(across, down, "" if np.isnan(value) else form.format(value), ha="center", va="center",
                color=ink, fontsize=8)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(visible=False)
    ax.figure.colorbar(picture, ax=ax, label=unit)


def caption(figure: Figure, text: str) -> None:
    """A grey line under the figure: n, profile, machine."""
    figure.supxlabel(text, x=0.99, ha="right", fontsize=7.5, color="0.45")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG whose bytes depend on nothing but the drawing (no date, no software version)."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())
    plt.close(figure)


def _bottom(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) + gap * (len(group) - 1) / 2

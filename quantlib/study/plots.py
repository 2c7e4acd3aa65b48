"""How the course draws: one style, one colour per method, direct labels, intervals, telling titles."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantlib.study.palette import BLUE, METHODS, Look, colour, look
from quantlib.study.results import write_atomic

__all__ = [
    "METHODS",
    "Look",
    "bars_with_intervals",
    "canvas",
    "caption",
    "colour",
    "heatmap",
    "histograms",
    "label_lines",
    "lengths",
    "line_with_bars",
    "lines_with_intervals",
    "look",
    "save",
    "set_title",
    "style",
    "use_style",
]
STYLE = Path(__file__).with_name("quantlib.mplstyle")
"""The style sheet."""


def use_style() -> None:
    """Set the course's style for every figure that follows."""
    plt.style.use(STYLE)


@contextmanager
def style() -> Iterator[None]:
    """The course's style inside a `with` block only."""
    with plt.style.context(["default", STYLE]):
        yield


def canvas(title: str = "", xlabel: str = "", ylabel: str = "", **subplots: Any) -> tuple[Figure, Any]:
    """A figure in the course's style and its axes, an array when rows or columns are asked for.

    The title states the finding; the labels carry the units.
    """
    with style():
        figure, axes = plt.subplots(**subplots)
        every = [axes] if isinstance(axes, Axes) else list(np.ravel(axes))
        if len(every) == 1:
            every[0].set_title(title)
        elif title:
            set_title(figure, title)
        for ax in every:
            ax.set_xlabel(xlabel)
            ax.set_ylabel(ylabel)
    return figure, axes


def set_title(figure: Figure, title: str) -> None:
    """Write the finding over all panels of a figure."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")


def lengths(table: pd.DataFrame) -> np.ndarray:
    """How far each interval reaches below and above its value (columns value, low, high): (2, rows).

    A degenerate bootstrap interval may miss its own value by rounding: never a negative length.
    """
    return np.vstack([table["value"] - table["low"], table["high"] - table["value"]]).clip(0)


def line_with_bars(
    ax: Axes, places: pd.Series | np.ndarray, table: pd.DataFrame, face: Look, **style: Any
) -> float:
    """A line through the values of a table, a bar for each interval (low, high); its last value."""
    ax.errorbar(places, table["value"], yerr=lengths(table), color=face.colour, marker=face.marker, **style)
    return float(table["value"].iloc[-1])


def lines_with_intervals(
    ax: Axes, table: pd.DataFrame, x: str, by: str = "method", label: bool = True
) -> None:
    """One line a method over column `x` (value, low, high), its interval as a band, its name at its end."""
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
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    scale = figure.dpi / 72.0
    at = {method: ax.transData.transform(point)[1] / scale for method, point in ends.items()}
    order = sorted(at, key=lambda method: (at[method], method))
    placed = spread([at[method] for method in order], gap)
    for method, height in zip(order, placed, strict=True):
        face = look(method)
        ax.annotate(
            face.label,
            ends[method],
            xytext=(7, height - at[method]),
            textcoords="offset points",
            color=face.colour,
            va="center",
            fontsize=8.5,
            fontweight="bold",
            annotation_clip=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move sorted heights apart until neighbours are `gap` away, each group staying around its own mean."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _top(groups[-2], gap) + gap > _bottom(groups[-1], gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_bottom(group, gap) + gap * place for group in groups for place in range(len(group))]


def bars_with_intervals(ax: Axes, table: pd.DataFrame, by: str = "method", form: str = "{:.2f}") -> None:
    """One horizontal bar a row (value, low, high), first row on top, with its interval and its number."""
    names = [str(name) for name in table[by]]
    faces = [METHODS.get(name, Look(BLUE, "o", name)) for name in names]
    places = np.arange(len(names))[::-1]
    values = table["value"].to_numpy(float)
    ax.barh(places, values, color=[face.colour for face in faces], height=0.62, zorder=2)
    known = table["low"].notna().to_numpy()
    errors = lengths(table)[:, known]
    ax.errorbar(
        values[known], places[known], xerr=errors, fmt="none", ecolor="0.15", elinewidth=1.0, zorder=3
    )
    edges = np.where(known, np.fmax(table["high"].to_numpy(float), values), values)
    for place, value, edge in zip(places, values, edges, strict=True):
        ax.annotate(
            form.format(value), (max(edge, 0.0), place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8.5,
        )  # fmt: skip
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
        ax.annotate(
            face.label,
            (edges[peak], density[peak]),
            xytext=(6, -2),
            textcoords="offset points",
            color=face.colour,
            fontweight="bold",
            fontsize=8.5,
        )
    if log:
        ax.set_yscale("log")


def heatmap(
    ax: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    form: str = "{:.1f}",
    unit: str = "",
) -> None:
    """A grid of numbers, each written in its cell, with a colour bar that carries the unit."""
    import seaborn  # here, because it takes half a second and few figures need it

    grid = np.asarray(values, dtype=float)
    across, down = ax.get_xlabel(), ax.get_ylabel()  # seaborn would clear them
    said = np.array([[form.format(value) for value in row] for row in grid])
    seaborn.heatmap(
        grid, ax=ax, annot=said, fmt="", cmap="cividis", xticklabels=list(columns), yticklabels=list(rows),
        annot_kws={"fontsize": 8}, cbar_kws={"label": unit},
    )  # fmt: skip
    ax.set(xlabel=across, ylabel=down)
    ax.tick_params(length=0, rotation=0)


def caption(figure: Figure, text: str) -> None:
    """A grey line under the figure: n, profile, machine."""
    figure.supxlabel(text, x=0.99, ha="right", fontsize=7.5, color="0.45")


def counted(n: int, what: str) -> str:
    """A number and its noun: "1 round", "9 rounds"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


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

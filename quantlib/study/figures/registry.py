"""The list of figures, and the two ways to draw one: in a notebook, or from results/ into a PNG."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from quantlib.errors import StudyError
from quantlib.study import plots, results
from quantlib.study.manifest import find_root

Drawing = Callable[..., Figure]
"""From data frames to a figure."""


@dataclass(frozen=True)
class CourseFigure:
    """A figure's name, the experiments it is drawn from, and the function that draws it."""

    name: str
    reads: tuple[str, ...]
    drawing: Drawing


FIGURES: dict[str, CourseFigure] = {}
"""Every registered figure by name; filled by `load_all`."""


def figure(name: str, *reads: str) -> Callable[[Drawing], Drawing]:
    """Register a drawing function: one data frame for each experiment in `reads` goes in, a Figure out."""

    def register(drawing: Drawing) -> Drawing:
        FIGURES[name] = CourseFigure(name, reads, drawing)
        return drawing

    return register


def load_all() -> dict[str, CourseFigure]:
    """Import every module nbNN of this package, and return the registered figures by name."""
    package = importlib.import_module("quantlib.study.figures")
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        if module.startswith("nb"):
            importlib.import_module(f"quantlib.study.figures.{module}")
    return FIGURES


def get(name: str) -> CourseFigure:
    """The figure of that name; StudyError names the closest."""
    figures = load_all()
    if name in figures:
        return figures[name]
    close = get_close_matches(name, figures, n=1)
    known = ", ".join(sorted(figures)) or "none yet"
    hint = f"did you mean {close[0]!r}?" if close else f"the figures are {known}."
    raise StudyError(f"There is no figure {name!r}; {hint}")


def draw(name: str, live: Mapping[str, pd.DataFrame] | None = None, root: Path | None = None) -> Figure:
    """Draw a figure from results/, or from `live` tables when a full result is not recorded yet.

    A figure drawn from live tables says "quick run" in its caption. StudyError when there is neither.
    """
    found = get(name)
    base = root or find_root()
    frames = _recorded(found, base)
    quick = frames is None
    if frames is None:
        frames = [_live(experiment, live or {}, base) for experiment in found.reads]
    with plots.style():
        drawn = found.drawing(*frames)
    if quick:
        own = drawn.get_supxlabel()
        plots.caption(drawn, f"{own}; quick run" if own else "quick run: the full one is not recorded yet")
    return drawn


def _recorded(found: CourseFigure, base: Path) -> list[pd.DataFrame] | None:
    """The full results that a figure is drawn from; None while one of them is not recorded."""
    if all(results.is_recorded(experiment, base) for experiment in found.reads):
        return [results.load(experiment, "full", base) for experiment in found.reads]
    return None


def _live(experiment: str, live: Mapping[str, pd.DataFrame], base: Path) -> pd.DataFrame:
    """The table of this session, else the last one that a quick run left in build/."""
    return live[experiment] if experiment in live else results.load(experiment, "quick", base)


def redraw(root: Path | None = None, into: Path | None = None) -> tuple[list[str], list[str]]:
    """Draw every figure whose full results are recorded into figures/ (or `into`); (drawn, missing) names."""
    base = root or find_root()
    drawn, missing = [], []
    for name, found in sorted(load_all().items()):
        frames = _recorded(found, base)
        if frames is None:
            missing.append(name)
            continue
        with plots.style():
            plots.save(found.drawing(*frames), (into or base / "figures") / f"{name}.png")
        drawn.append(name)
    return drawn, missing

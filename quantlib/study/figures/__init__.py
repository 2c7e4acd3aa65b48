"""The figures of the course, drawn from recorded results alone.

One module a notebook (`nb03.py`); in it one function a figure, registered by `@figure`.
`draw("03_observers")` draws it in a notebook; `python -m quantlib.study.figures` redraws them all into
figures/*.png.
"""

from quantlib.study.figures.registry import FIGURES, CourseFigure, draw, figure, load_all, redraw

__all__ = ["FIGURES", "CourseFigure", "draw", "figure", "load_all", "redraw"]

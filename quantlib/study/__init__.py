"""The study: the course's list, its results, its runner, its figures."""

from quantlib.study.session import Session, start

__all__ = ["Session", "start"]

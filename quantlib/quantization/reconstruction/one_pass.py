"""Elementwise formulas that a compiler makes one loop over memory, in runs that are long enough to pay it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from quantlib.quantization.observers import base

_P = ParamSpec("_P")
_R = TypeVar("_R")

_state: dict[str, Any] = {"wanted": False, "works": True}


@contextmanager
def compiling(wanted: bool = True) -> Iterator[None]:
    """Inside, functions marked `one_pass` are compiled when they are first called, in some seconds each.

    A formula of ten operations reads and writes memory ten times in eager mode; compiled, once. Introduced
    in notebook 10.
    """
    before, _state["wanted"] = _state["wanted"], wanted
    try:
        yield
    finally:
        _state["wanted"] = before


def one_pass(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The same function; inside `compiling` through torch.compile, where that works.

    The values are those of eager mode up to the last bit of a sum. Each number of dimensions, each dtype and
    each plain number is compiled anew, torch gives up after eight: so `flat` tensors, and tensors for
    numbers that change. Introduced in notebook 10.
    """
    made: list[Callable[_P, _R]] = []

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not (_state["wanted"] and _state["works"]):
            return function(*args, **kwargs)
        if not made:
            made.append(torch.compile(function, dynamic=True))
        try:
            return made[0](*args, **kwargs)
        except Exception as error:  # the compiler's own errors are of many kinds
            warnings.warn(f"no torch.compile here ({type(error).__name__}); slower without it", stacklevel=2)
            _state["works"] = False
            return function(*args, **kwargs)

    return call


def flat(x: Tensor) -> Tensor:
    """All values of a `dense` tensor in the order of memory, without its past, which would be compiled in."""
    return base.flat(x).detach()


def dense(x: Tensor) -> Tensor:
    """`x`, copied where it has gaps in memory or is in another order than a batch of images has."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if last else x.contiguous()


def same_order(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the order of memory of `other`, a dense tensor of its shape."""
    return x if x.stride() == other.stride() else torch.empty_like(other).copy_(x)

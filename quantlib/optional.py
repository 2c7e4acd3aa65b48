"""Packages that quantlib can do without: import one, or say in a sentence how to install it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from quantlib.errors import ConfigError, QuantlibError


def optional(name: str, wanted_by: str, instead: str, error: type[QuantlibError] = ConfigError) -> Any:
    """The module `name`; where its package is missing, `error` with a sentence that says what to do.

    wanted_by: what needs it, the sentence's beginning; instead: how to install it, or what else to do.

    >>> optional("json", "The doctest", "pip install json").dumps([1])
    '[1]'
    """
    try:
        return import_module(name)
    except ImportError as missing:
        package = name.split(".")[0]
        raise error(f"{wanted_by} needs {package}, which is not installed: {instead}.") from missing

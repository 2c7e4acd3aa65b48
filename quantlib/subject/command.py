"""How every long command ends: done, stopped by Ctrl-C, or one sentence about what is wrong."""

import argparse
import errno
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from quantlib.errors import ConfigError, QuantlibError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of a disk that is full or that may not be written to."""


def run_command(work: Callable[[], object], kept: str = "the state is saved") -> int:
    """Do the work of a command line; the exit status is 0, 1 after an error, 130 after Ctrl-C.

    `kept`: what an interrupted command leaves for the next call.
    """
    try:
        work()
    except KeyboardInterrupt:
        print(f"\nstopped; {kept}, and the same command goes on from there")
        return 130
    except QuantlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        advice = "; make room there, or name a folder that can be written by --folder or XDG_CACHE_HOME"
        print(f"error: {error}{advice if error.errno in UNWRITABLE else ''}", file=sys.stderr)
        return 1
    return 0


def check_start(path: Path, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """ConfigError when what a command kept at its start was made with other options than it has now."""
    if dict(kept) != dict(wanted):
        old = ", ".join(f"{name} {value}" for name, value in kept.items())
        raise ConfigError(f"{path} was made with {old}; give --folder for another start, or move it away.")


def require_device(name: str) -> str:
    """The device's name, if it is there; ConfigError otherwise."""
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise ConfigError(f"There is no device {name!r}; use cpu or cuda.") from None
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"There is no device {name!r}; use cpu or cuda.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("There is no CUDA device on this machine; use cpu.")
    place = torch.device(name).index or 0
    if place and place >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ConfigError(f"There is no device {name!r}; the last one here is cuda:{last}.")
    return name


def at_least_one(text: str) -> int:
    """A number of an option that must be at least 1, for argparse.

    >>> at_least_one("2")
    2
    """
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device, the GPU where there is one; one that is not there is refused as the line is read."""

    def known(name: str) -> str:
        try:
            return require_device(name)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=known, default=found, help=f"cpu or cuda (default: {found})")

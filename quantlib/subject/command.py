"""How every long command ends: done, stopped by Ctrl-C, or one sentence about what is wrong."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantlib.errors import ConfigError, QuantlibError


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
    return 0


def check_start(path: Path, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """ConfigError when what a command kept at its start was made with other options than it has now."""
    if dict(kept) != dict(wanted):
        old = ", ".join(f"{name} {value}" for name, value in kept.items())
        raise ConfigError(f"{path} was made with {old}; give --folder for another start, or move it away.")

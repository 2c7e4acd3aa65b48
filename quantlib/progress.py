"""One progress bar for the whole library, silent wherever nobody watches."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    iterable: Iterable[T], desc: str = "", total: int | None = None, unit: str = "it"
) -> Iterator[T]:
    """Yield from `iterable` under a progress bar on an interactive terminal, and plainly elsewhere.

    Notebooks, CI and log files get no bar: a bar stored in a notebook stays at 0 % for ever.
    """
    silent = not sys.stderr.isatty()
    yield from tqdm(iterable, desc=desc, total=total, unit=unit, disable=silent, leave=False, file=sys.stderr)

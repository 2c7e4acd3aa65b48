"""Networks timed in turn on the same batches, and the rows that say what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from quantlib.study.session import Session
from quantlib.subject.benchmark import Timing, interleave, machine, ratio

AT_LEAST, PAUSE = 0.2, 0.05  # seconds; see interleave
"""Seconds, see `interleave`."""


def race(
    networks: Mapping[str, Callable[[Tensor], Any]], sample: Tensor, sizes: Sequence[int], repeats: int
) -> dict[int, dict[str, Timing]]:
    """Time every network on batches of each size, in turn within a round: size -> name -> Timing.

    sample: (n, c, h, w), repeated or cut to the size, channels last. Introduced in notebook 07.
    """
    found = machine()
    print(f"{found['cpu']}, {found['isa']}, {found['threads']} threads, torch {found['torch']}")
    timings = {}
    with torch.no_grad():
        for size in sizes:
            x = batch_of(sample, size)
            calls = {name: lambda network=network: network(x) for name, network in networks.items()}  # noqa: B023
            timings[size] = interleave(calls, repeats, at_least=AT_LEAST, pause=PAUSE)
    return timings


def speed_rows(
    run: Session, timings: Mapping[int, Mapping[str, Timing]], baseline: str = "fp32"
) -> list[dict[str, Any]]:
    """Rows of images_per_second (median, quartiles) and speedup over `baseline` (median, lowest, highest).

    Introduced in notebook 07.
    """
    rows = []
    for size, found in timings.items():
        for name, timing in found.items():
            times, low, high = ratio(found, baseline, name)
            about = {"n": len(timing.runs), "batch": size}
            rate, least, most = (size / seconds for seconds in (timing.median, timing.high, timing.low))
            rows += [
                run.row(name, rate, metric="images_per_second", low=least, high=most, **about),
                run.row(name, times, metric="speedup", low=low, high=high, **about),
            ]
    return rows


def first_calls(
    networks: Mapping[str, Callable[[Tensor], Any]], sample: Tensor, sizes: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Seconds of every network's first batch of each size, before a race: compilation, packing, memory.

    Introduced in notebook 18.
    """
    return {
        size: {name: _seconds(network, batch_of(sample, size)) for name, network in networks.items()}
        for size in sizes
    }


def _seconds(network: Callable[[Tensor], Any], x: Tensor) -> float:
    began = time.perf_counter()
    with torch.no_grad():
        network(x)
    return time.perf_counter() - began


def batch_of(sample: Tensor, size: int) -> Tensor:
    """`sample`, repeated or cut to `size` images, channels last. Introduced in notebook 07."""
    x = sample.repeat(-(-size // len(sample)), 1, 1, 1)[:size]
    return x.contiguous(memory_format=torch.channels_last)


def fastest_of(timings: Mapping[str, Timing], names: Iterable[str]) -> str | None:
    """The name with the least median among those that take part; None when none does.

    Introduced in notebook 07.
    """
    here = [name for name in names if name in timings]
    return min(here, key=lambda name: timings[name].median, default=None)


def fastest(timings: Mapping[str, Timing], among: str) -> str | None:
    """The name with the least median of those that begin with `among`; None when none does.

    Introduced in notebook 07.
    """
    return fastest_of(timings, [name for name in timings if name.startswith(among)])

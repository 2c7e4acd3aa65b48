"""`make bench`: every engine that can run ResNet-50 on this machine, in turn within one run."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from quantlib.errors import ConfigError, QuantlibError, StudyError
from quantlib.study import origin, results
from quantlib.study.manifest import find_root
from quantlib.study.memory import peak_memory
from quantlib.study.race import fastest_of, first_calls, race
from quantlib.study.rivals import FAMILIES, MISSING, OURS, RIVALS, Contest, Field, gather
from quantlib.subject import data
from quantlib.subject.benchmark import Timing, ratio
from quantlib.subject.checkpoints import load_checkpoint
from quantlib.subject.command import at_least_one

FEW = ("fp32", "fp32_folded", "torch_ao", "onnxruntime", "mixed", "integer")
"""Rivals that `make setup` installs and that need no compilation."""


class Competition(NamedTuple):
    """The tidy rows of a competition, and the timings behind them, by batch size and name."""

    rows: list[dict[str, Any]]
    timings: dict[int, dict[str, Timing]]


def compete(
    field: Field, sample: Tensor, sizes: Sequence[int], repeats: int, memory: bool = False
) -> Competition:
    """Time the field at every batch size: tidy rows, one a measurement, and one for each missing rival.

    metrics: build_seconds (reading, calibrating, converting), first_call_seconds (compiling, packing),
    images_per_second and latency_ms (median, quartiles over the rounds), speedup over the first network
    (median, lowest, highest), lead (see `leads`), peak_mb of resident memory at the largest batch, missing.
    Introduced in notebook 18.
    """
    if not field.networks:
        raise StudyError(f"There is nothing to race; missing: {', '.join(field.missing) or 'all'}.")
    sizes = list(dict.fromkeys(sizes))
    first = first_calls_of(field, sample, sizes)
    timings = race(field.networks, sample, sizes, repeats)
    peaks = peak_memory(field.networks, max(sizes)) if memory else {}
    notes = dict.fromkeys(OURS, "calibration not counted")
    rows = [
        row(name, "build_seconds", seconds, note=notes.get(name, ""))
        for name, seconds in field.seconds.items()
    ]
    for size in sizes:
        rows += [row(name, "first_call_seconds", value, batch=size) for name, value in first[size].items()]
        rows += speeds(timings[size], size) + leads(timings[size], size)
    rows += [row(name, "peak_mb", peak, batch=max(sizes)) for name, peak in peaks.items()]
    rows += [row(name, "missing", 1, note=why) for name, why in field.missing.items()]
    return Competition(rows, timings)


def first_calls_of(field: Field, sample: Tensor, sizes: Sequence[int]) -> dict[int, dict[str, float]]:
    """Seconds of every first call; who cannot make it is missing: torch.compile asks for a compiler then."""
    first: dict[int, dict[str, float]] = {size: {} for size in sizes}
    for size in sizes:
        for name, network in list(field.networks.items()):
            try:
                first[size] |= first_calls({name: network}, sample, [size])[size]
            except MISSING as error:
                field.leave_out(name, error)
    return {size: {name: found[name] for name in field.networks} for size, found in first.items()}


def row(
    method: str, metric: str, value: float, batch: int = 0, note: str = "", **more: Any
) -> dict[str, Any]:
    """A tidy row; batch 0 where there is none."""
    return results.row(method, metric, value, batch=batch, note=note, **more)


def speeds(timings: Mapping[str, Timing], size: int) -> list[dict[str, Any]]:
    """Rows of throughput, latency and speedup at one batch size."""
    rows, baseline = [], next(iter(timings))
    for name, timing in timings.items():
        about: dict[str, Any] = {"batch": size, "n": len(timing.runs)}
        rate, least, most = (size / seconds for seconds in (timing.median, timing.high, timing.low))
        delay, soon, late = (1000 * seconds for seconds in (timing.median, timing.low, timing.high))
        times, low, high = ratio(timings, baseline, name)
        rows += [
            row(name, "images_per_second", rate, low=least, high=most, **about),
            row(name, "latency_ms", delay, low=soon, high=late, **about),
            row(name, "speedup", times, low=low, high=high, **about),
        ]
    return rows


def leads(timings: Mapping[str, Timing], size: int) -> list[dict[str, Any]]:
    """Our fastest integer network over the fastest of each other family: times (median, lowest, highest)."""
    best = {family: fastest_of(timings, names) for family, names in FAMILIES.items()}
    ours, rows = best.pop("integers"), []
    for family, rival in best.items():
        if ours and rival:
            times, low, high = ratio(timings, rival, ours)
            about: dict[str, Any] = {"batch": size, "n": len(timings[ours].runs)}
            note = f"{ours} over {rival}"
            rows.append(row(family, "lead", times, low=low, high=high, note=note, **about))
    return rows


def shown(table: pd.DataFrame) -> str:
    """The measurements as lines for people, the fastest of each batch size on top."""
    lines = []
    for size in sorted(set(table["batch"]) - {0}):
        part = table[(table["batch"] == size) & (table["metric"] != "lead")].pivot(
            index="method", columns="metric", values="value"
        )
        spread = table[(table["batch"] == size) & (table["metric"] == "speedup")].set_index("method")
        lines.append(f"batch {size}")
        for name, found in part.sort_values("images_per_second", ascending=False).iterrows():
            low, high = spread.loc[name, ["low", "high"]]
            peak = f" {found['peak_mb']:7.0f} MB" if found.get("peak_mb", 0) > 0 else ""
            lines.append(
                f"  {name:18s} {found['images_per_second']:8.1f} images/s {found['latency_ms']:9.2f} ms "
                f"{found['speedup']:6.2f} times [{low:.2f}, {high:.2f}]  first call "
                f"{found['first_call_seconds']:6.2f} s{peak}"
            )
        for _, found in table[(table["batch"] == size) & (table["metric"] == "lead")].iterrows():
            times = f"{found['value']:.2f} times [{found['low']:.2f}, {found['high']:.2f}]"
            lines.append(f"  our best against {found['method']}: {times} ({found['note']})")
    missing = table[table["metric"] == "missing"]
    return "\n".join(
        lines + [f"missing: {name}: {note}" for name, note in missing[["method", "note"]].values]
    )


def bench(sizes: Sequence[int], repeats: int, names: Sequence[str], memory: bool, into: Path) -> None:
    """Run the competition, print it, and keep it with the machine and the versions beside it."""
    for size in sizes:
        if not 1 <= size <= 1000:
            raise ConfigError(f"batch is {size}; give 1 to 1000.")
    images = data.load("calibration").take(64)
    field = gather(Contest(load_checkpoint("resnet50"), images), names)
    sample, _ = next(data.batches(images, 64))
    table = pd.DataFrame(compete(field, sample, sizes, repeats, memory).rows)
    results.write_table(into, table)
    results.write_atomic(into.with_suffix(".json"), results.to_json(origin.provenance("bench")))
    print(shown(table))
    print(f"kept in {into.name}, and beside it the machine and the versions")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when it worked."""
    parser = argparse.ArgumentParser(prog="python -m quantlib.study.bench", description=__doc__)
    parser.add_argument(
        "--batch", type=int, nargs="*", default=[1, 8, 64], help="batch sizes (default 1 8 64)"
    )
    parser.add_argument("--repeats", type=int, default=7, help="counted rounds (default 7)")
    parser.add_argument("--threads", type=at_least_one, default=torch.get_num_threads())
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), metavar="NAME", help=", ".join(RIVALS))
    parser.add_argument("--few", action="store_true", help="only " + ", ".join(FEW))
    parser.add_argument("--memory", action="store_true", help="peak memory too: a process for each rival")
    parser.add_argument("--into", type=Path, default=None, help="the table (default build/bench/bench.csv)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print("medians of interleaved rounds; in brackets the lowest and highest ratio of a round")
    try:
        into = options.into or find_root() / "build" / "bench" / "bench.csv"
        bench(options.batch, options.repeats, FEW if options.few else options.rivals, options.memory, into)
    except QuantlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

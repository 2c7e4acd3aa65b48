"""Many training runs, several side by side, some of which wait for others; their command."""

import argparse
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import torch

from quantlib.errors import ConfigError
from quantlib.subject import data
from quantlib.subject.allocator import keep_freed_memory
from quantlib.subject.checkpoints import RESULTS
from quantlib.subject.command import add_device, check_start
from quantlib.subject.data import Images
from quantlib.subject.files import write_atomically

Run = TypeVar("Run", bound=Hashable)
RESULT = "result.json"
"""What a finished run leaves in its folder."""
GRACE = 600
"""Seconds that a worker has to save its state when the process that started it is gone."""


def side_by_side(
    runs: Sequence[Run],
    work: Callable[[Run], Any],
    workers: int = 1,
    needs: Callable[[Run], set[Run]] | None = None,
) -> Iterator[tuple[Run, Any]]:
    """Do every run once and yield (run, result) as each is finished.

    With several `workers` so many go on at once, each in a process of its own with one thread: for a small
    network that is faster than one run with several threads. `work` must then be picklable. `needs`: the runs
    that must be finished before one can begin; those that are not in `runs` count as finished. One worker
    keeps the order given. An error in a run ends the campaign. Introduced in notebook 12.
    """
    waits: Callable[[Run], set[Run]] = needs or (lambda run: set())
    if workers < 2:
        for run in runs:
            yield run, work(run)
        return
    waiting, running = list(runs), dict[Future[Any], Run]()
    open_ = set(runs)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _settle) as pool:
        while waiting or running:
            ready = [run for run in waiting if not waits(run) & open_][: workers - len(running)]
            for run in ready:
                waiting.remove(run)
                running[pool.submit(work, run)] = run
            if not running:
                raise ConfigError(f"{waiting[0]} waits for a run that waits for it; mend what they need.")
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                open_.discard(run)
                if error := future.exception():
                    print(f"{run} failed ({error}); the runs under way end first", flush=True)
                yield run, future.result()


def _settle() -> None:
    """What a worker does first."""
    torch.set_num_threads(1)
    keep_freed_memory()
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()


def _leave_with(parent: int) -> None:
    """End this worker once the process that started it is gone: the next one must find the folders free."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)  # a trainer saves its state first
    time.sleep(GRACE)
    os._exit(1)


def campaign_images(
    split: str, source: str, counts: tuple[int, int, int] | None, root: str | None = None
) -> Images:
    """The images of "train", "validation" or "test" of an experiment; a slice trains on its calibration's.

    source, root: as in `data.load`; counts: how many of each of the three, None for all.
    """
    name = "calibration" if (split, source) == ("train", "slice") else split
    found = data.load(name, source, root)
    if counts is None:
        return found
    return found.sample(counts[("train", "validation", "test").index(split)], seed=0)


def keep_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write the result of a finished run, so that a reader sees all of it or nothing."""
    write_atomically(path, json.dumps(result))


def kept_result(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a finished run, None where there is none; ConfigError for one of other `settings`."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    if found.get("settings", settings) != settings:
        raise ConfigError(
            f"{path.parent} holds a run with other settings; move it away to train anew, or give --folder."
        )
    return found


def kept_results(folder: Path, runs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results that a campaign's folder holds, in the order of `runs`: settings by name of the folder."""
    found = (kept_result(folder / name / RESULT, settings) for name, settings in runs.items())
    return [result for result in found if result is not None]


def of_one_plan(folder: Path, plan: str) -> None:
    """Mark a campaign's folder as this plan's; ConfigError when it is marked as another's."""
    mark = folder / "plan.json"
    mark_start(mark, {"plan": plan}, mark)


def mark_start(mark: Path, made: Mapping[str, Any], named: Path) -> None:
    """Write what a run is made with into `mark`; ConfigError, naming `named`, where that says otherwise."""
    if mark.exists():
        check_start(named, json.loads(mark.read_text()), made)
    else:
        write_atomically(mark, json.dumps(made))


def take_over(folder: Path, runs: Mapping[str, Mapping[str, Any]], kept: Path = RESULTS / "runs") -> None:
    """Copy into a campaign's folder the results that another machine has finished and committed.

    They lie in `kept`, under the last two parts of the folder's path. `runs`: settings by name of the run;
    results of other settings stay where they are, and what the folder has is not touched.
    """
    for name, settings in runs.items():
        path, own = kept / folder.parent.name / folder.name / name / RESULT, folder / name / RESULT
        if path.exists() and not own.exists() and json.loads(path.read_text()).get("settings") == settings:
            write_atomically(own, path.read_text())


def campaign_arguments(
    argv: Sequence[str] | None, about: str | None, recipe: str, table: str
) -> argparse.Namespace:
    """Read the command line of a campaign; `recipe`: the default, with a [`table`] table."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--recipe", default=recipe, help=f"a recipe with a [{table}] table")
    parser.add_argument("--workers", type=int, help="runs side by side (default: a core each; 4 on a GPU)")
    parser.add_argument("--folder", type=Path, help="where the runs are kept (default: the user's cache)")
    parser.add_argument("--data", help="folder of CIFAR-10 (default: looked for)")
    add_device(parser)
    options = parser.parse_args(argv)
    options.workers = options.workers or (4 if options.device != "cpu" else os.cpu_count())
    return options


def report_runs(
    results: Iterable[Mapping[str, Any]], count: int, workers: int, folder: Path,
    said: Callable[[Mapping[str, Any]], str],
) -> None:  # fmt: skip
    """Print how many runs there are, a line for each as it ends: what `said` says, and its minutes."""
    print(f"{count} runs, {workers} side by side; state in {folder}", flush=True)
    for place, result in enumerate(results, 1):
        print(f"{place}/{count}  {said(result)}, {result['seconds'] / 60:.1f} min", flush=True)

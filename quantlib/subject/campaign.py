"""Many training runs, several side by side, some of which wait for others."""

import multiprocessing
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any, TypeVar

import torch

Run = TypeVar("Run", bound=Hashable)


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
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        while waiting or running:
            ready = [run for run in waiting if not waits(run) & open_][: workers - len(running)]
            for run in ready:
                waiting.remove(run)
                running[pool.submit(work, run)] = run
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                open_.discard(run)
                yield run, future.result()

"""A sweep: many settings, each evaluated once and kept at once, on this machine or on a Dask cluster."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from quantlib.errors import ConfigError, StudyError
from quantlib.optional import optional
from quantlib.progress import progress
from quantlib.study.digests import EVALUATING, code_digest, own_code_digest
from quantlib.study.session import Session

Setting = Mapping[str, Any]
"""A setting or a result: plain data by column."""
Evaluate = Callable[[Setting], Mapping[str, Any]]
"""From a setting to its result."""
ANSWERS_WITHIN = 30
"""Seconds in which a Dask scheduler must answer, and its first worker come."""
_ONE_AT_A_TIME = threading.Lock()


class Journal:
    """The finished settings of a sweep, one line of JSON each, in a file that only ever grows.

    A line that a kill has cut off does not count, and the next one starts on a line of its own; of two lines
    for one setting the first counts. `context`: whatever else decides the results (checkpoint, images, code);
    lines of another context do not count. Introduced in notebook 09.
    """

    def __init__(self, path: str | Path, context: Setting | None = None) -> None:
        self.path, self.context = Path(path), dict(context or {})

    @classmethod
    def of(cls, run: Session, name: str, rooms: Sequence[str] = EVALUATING, **context: Any) -> Journal:
        """The journal of a notebook's sweep; models, images, versions and code of `rooms` are its context.

        A full sweep takes hours, perhaps on more than one machine: its journal lies in results/unfinished,
        where git takes it along. Others, and those of a run with changed parameters, are in build/sweeps.
        """
        origin = run.provenance()
        fixed = {key: origin[key] for key in ("checkpoints", "data", "versions")}
        official = run.profile == "full" and not os.environ.get("QUANTLIB_RESULTS")
        kept = "results/unfinished" if official else f"build/sweeps/{run.profile}"
        path = run.course.root / kept / f"{run.number}_{name}.jsonl"
        return cls(path, {**fixed, "code": code_digest(rooms), **context})

    def key(self, setting: Setting) -> str:
        """What a setting is known by: a digest of it and of the context."""
        try:
            text = json.dumps([dict(setting), self.context], sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"A setting holds text, numbers, lists and None, nothing else; not {setting} ({error})."
            ) from error
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def finished(self) -> dict[str, dict[str, Any]]:
        """The results kept so far, by key."""
        found: dict[str, dict[str, Any]] = {}
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
                found.setdefault(entry["key"], entry["result"])
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill
        return found

    def keep(self, setting: Setting, result: Mapping[str, Any]) -> None:
        """Add one finished setting; it is on the disk when this returns."""
        line = json.dumps({"key": self.key(setting), "setting": dict(setting), "result": dict(result)})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            cut_off = file.read(1) not in (b"", b"\n")
            file.write((b"\n" if cut_off else b"") + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def once(self, setting: Setting, make: Callable[[], Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """The rows of a setting: those that were kept; else what `make` gives, which is kept at once.

        Rows that other code of the notebook's own cells made do not count: no room has that code.
        """
        setting = {**setting, "own_code": own_code_digest(make)}
        if self.key(setting) not in self.finished():
            self.keep(setting, {"rows": [dict(row) for row in make()]})
        rows: list[dict[str, Any]] = self.finished()[self.key(setting)]["rows"]
        return rows

    def forget(self) -> None:
        """Remove the file: the results are recorded, the next sweep starts anew."""
        self.path.unlink(missing_ok=True)


def sweep(
    settings: Iterable[Setting], evaluate: Evaluate, journal: Journal, scheduler: str | None = None
) -> list[dict[str, Any]]:
    """Each setting with its result, {**setting, **evaluate(setting)}, in the order of `settings`.

    Every result goes to the journal as soon as it is there, so a killed sweep goes on where it stopped when
    it is called again. `scheduler`: "tcp://host:port" of a Dask cluster whose workers have quantlib; a worker
    that dies loses nothing, another one does its settings again. `evaluate` must give the same result
    wherever it runs; it and the results must be picklable, the results JSON as well. Equal settings are
    evaluated once and come once, at the place of the first. Raises StudyError when a setting fails (what is
    finished stays kept), when no scheduler answers or Dask is not installed; ConfigError for a setting that
    is not plain data.
    Introduced in notebook 09.
    """
    wanted = {journal.key(setting): dict(setting) for setting in settings}
    finished = journal.finished()
    missing = {key: setting for key, setting in wanted.items() if key not in finished}
    done_before = len(wanted) - len(missing)
    print(f"{len(wanted)} settings" + (f", {done_before} of them finished before" if done_before else ""))
    run = _here(missing, evaluate) if scheduler is None else _on_cluster(missing, evaluate, scheduler)
    for key, result in progress(run, "sweep", len(missing), "setting"):
        if key not in finished:
            # Through JSON, as after a restart: tuples are lists either way, and numpy's numbers plain ones.
            finished[key] = json.loads(json.dumps(result, default=float))
            journal.keep(wanted[key], finished[key])
    return [{**setting, **finished[key]} for key, setting in wanted.items()]


def _here(missing: Mapping[str, Setting], evaluate: Evaluate) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, setting in missing.items():
        try:
            yield key, _evaluated(evaluate, setting)
        except Exception as error:
            raise _failed(setting, error) from error


def _on_cluster(
    missing: Mapping[str, Setting], evaluate: Evaluate, scheduler: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Results in the order in which the workers finish."""
    if not missing:
        return
    distributed = optional(
        "distributed", "scheduler=", "pip install -e '.[cluster]', or leave scheduler= out", StudyError
    )
    with _client(distributed, scheduler) as client, client.as_current():
        attempt = uuid4().hex  # never a result that another client left on the cluster
        futures = {
            client.submit(_evaluated, evaluate, setting, key=f"sweep-{attempt}-{key}"): key
            for key, setting in missing.items()
        }
        for future in distributed.as_completed(list(futures)):
            key = futures[future]
            try:
                # Asking again, if the worker died after it finished: then another one starts over.
                yield key, future.result()
            except Exception as error:
                raise _failed(missing[key], error) from error


def _client(distributed: Any, scheduler: str) -> Any:
    """A client of the cluster, which has a worker at least."""
    try:
        client = distributed.Client(scheduler, timeout=ANSWERS_WITHIN, set_as_default=False)
    except (OSError, ValueError) as error:
        raise StudyError(
            f"No Dask scheduler answers at {scheduler} ({error}); start one with `dask scheduler`."
        ) from error
    try:
        client.wait_for_workers(1, timeout=ANSWERS_WITHIN)
    except TimeoutError as error:
        client.close()
        raise StudyError(
            f"The Dask scheduler at {scheduler} has no worker; start some with "
            f"`dask worker {scheduler} --nthreads 1`, where quantlib is installed."
        ) from error
    return client


def _evaluated(evaluate: Evaluate, setting: Setting) -> dict[str, Any]:
    """One evaluation in this process, never two at a time: they would share models and cores."""
    with _ONE_AT_A_TIME:
        return dict(evaluate(dict(setting)))


def _failed(setting: Setting, error: Exception) -> StudyError:
    return StudyError(
        f"The setting {dict(setting)} failed ({type(error).__name__}: {error}); what was finished is kept, "
        "and the same call goes on from there."
    )

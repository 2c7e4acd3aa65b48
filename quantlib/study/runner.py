"""`python -m quantlib.study.runner`: run the course's notebooks, skip what is unchanged, write a report.

doit runs what is not done; papermill executes, one process a notebook. What a good run was made of stands in
the notebook's record, written when it ends: a run that is killed forgets nothing that was finished. Exit
status: 0 all ran, 1 a notebook failed, 2 a bad argument, 130 stopped by Ctrl-C.
"""

import argparse
import math
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain
from doit.exceptions import TaskFailed

from quantlib.errors import QuantlibError
from quantlib.study import report, results
from quantlib.study.console import Progress, spell
from quantlib.study.jobs import Job, check_disk, missing, parse_parameters, plan
from quantlib.study.manifest import Course, course
from quantlib.study.process import read_record, write_record
from quantlib.subject import layout
from quantlib.subject.command import require_device


def execute(job: Job) -> TaskFailed | None:
    """Doit's action: run the notebook, enter what it was made of; its failure as doit wants it."""
    path = job.course.path(job.notebook)
    if not path.is_file():
        job.record.unlink(missing_ok=True)
        return TaskFailed(missing(job.notebook))
    key = job.key()  # before the run: what is edited while it runs makes it run again
    try:
        with half_made(job):
            record = job.run()
    except OSError as error:
        return TaskFailed(f"{error.filename or job.folder} could not be written: {error.strerror or error}.")
    if record["status"] == "ok":
        write_record(job.record, {**record, "key": key})
        return None
    return TaskFailed(record["error"]["message"])


@contextmanager
def half_made(job: Job) -> Iterator[None]:
    """Say which recorded results a run has replaced that did not come to its end, and how they come back."""
    folder = job.course.root / "results"
    recorded = job.profile == "full" and "QUANTLIB_RESULTS" not in job.environment()
    before = _written(folder) if recorded else {}
    try:
        yield
    finally:
        if recorded and (read_record(job.record) or {}).get("status") != "ok":
            now = _written(folder)
            replaced = sorted(path for path in before if now.get(path) != before[path])
            if replaced:
                names = " ".join(str(path.relative_to(job.course.root)) for path in replaced)
                print(f"    What was recorded is half replaced: run it again, or `git checkout -- {names}`.")


def _written(folder: Path) -> dict[Path, int]:
    """When each recorded file was written; the journals of unfinished sweeps are none."""
    every = (path for ending in ("csv", "json", "npz") for path in folder.rglob(f"*.{ending}"))
    return {path: path.stat().st_mtime_ns for path in every}


def tasks(jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """One doit task a notebook."""
    for job in jobs:
        yield {
            "basename": job.notebook.number,
            "actions": [(execute, [job])],
            "uptodate": [job.is_done],  # asked when its turn comes: those before may have recorded anew
            "verbosity": 2,
        }


def run(jobs: Sequence[Job], progress: Progress, force: bool = False) -> int:
    """Run the jobs under doit; its exit code (0, or not). `progress` has the status of each notebook."""
    check_disk(jobs[0].folder)
    options = ["--always-execute"] if force else []
    with tempfile.TemporaryDirectory() as aside:  # doit's own memory, which is not needed
        state = {"dep_file": str(Path(aside) / "state.json"), "backend": "json"}
        namespace = {
            "DOIT_CONFIG": {"reporter": progress, "continue": True, **state},
            "task_study": lambda: tasks(jobs),
        }
        code = DoitMain(ModuleTaskLoader(namespace)).run(["run", *options, *progress.jobs])
    return int(code or 0)


def listing(loaded: Course) -> str:
    """The notebooks as a table: number, title, minutes by profile."""
    lines = [f"{'':4}{'title':32}" + "".join(f"{name + ' (min)':>14}" for name in loaded.profiles)]
    for nb in loaded.notebooks:
        lines.append(
            f"{nb.number:4}{nb.title:32}" + "".join(f"{nb.minutes[name]:>14g}" for name in loaded.profiles)
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m quantlib.study.runner", description=__doc__.splitlines()[0]
    )
    made.add_argument("--profile", default="quick", help="quick (default) or full")
    made.add_argument(
        "--only", action="append", default=[], metavar="NN", help="this notebook; may be repeated"
    )
    made.add_argument("--from", dest="since", metavar="NN", help="this notebook and those after it")
    made.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a parameter; the results then go to build/results/PROFILE-changed",
    )
    made.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    made.add_argument("--force", action="store_true", help="run also what is unchanged")
    made.add_argument("--list", action="store_true", help="list the notebooks and stop")
    made.add_argument(
        "--record-time",
        action="store_true",
        help="enter the time of a whole quick run, and of the last good `make test`, in results/headline.csv",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the command line says; the exit status."""
    options = parser().parse_args(arguments)
    began = time.monotonic()
    try:
        loaded = course()
        if options.list:
            print(listing(loaded))
            return 0
        require_device(options.device)
        given = parse_parameters(options.parameters)
        jobs = plan(loaded, options.profile, options.only, options.since, given, options.device)
        if not jobs:
            print("No notebook is left by --only and --from together.", file=sys.stderr)
            return 2
        if loaded.profile(options.profile).get("source") == "full":
            layout.require()  # now, and not in each notebook by itself
        check_disk(jobs[0].folder)
    except QuantlibError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        return _run_and_report(loaded, jobs, options, began)
    except QuantlibError as error:
        print(error, file=sys.stderr)
        return 1


def stop_cleanly() -> None:
    """Let SIGINT, SIGTERM and a closed terminal end the run as Ctrl-C does, and its notebook with it.

    A run started in the background of a script inherits an ignored SIGINT; one under nohup an ignored SIGHUP,
    which is meant so.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _run_and_report(loaded: Course, jobs: Sequence[Job], options: argparse.Namespace, began: float) -> int:
    stop_cleanly()
    interrupted, code = False, 1
    progress = Progress(jobs, options.force)
    try:
        code = run(jobs, progress, options.force)
    except KeyboardInterrupt:
        interrupted = True
    seconds, status = time.monotonic() - began, progress.status
    page = report.write(loaded, options.profile, seconds, status)
    if interrupted:
        again = "the same command without --force" if options.force else "the same command"
        print(f"\nStopped. Finished notebooks are kept; {again} goes on with the rest.")
        return 130
    failed = [number for number, word in status.items() if word == "failed"]
    word = f"FAILED: {', '.join(failed)}" if failed else "not all was run" if code else "all well"
    print(f"{len(status)} notebooks in {spell(seconds)}, {word}. Report: {page.relative_to(loaded.root)}")
    if options.record_time:
        plain = options.profile == "quick" and options.device == "cpu" and not options.parameters
        _record_time(loaded, plain, seconds, status)
    return 1 if code or failed else 0


def _record_time(loaded: Course, plain: bool, seconds: float, status: Mapping[str, str]) -> None:
    """Enter the seconds of a quick run of all notebooks (say why not otherwise) and of the tests.

    plain: at quick size on the CPU, nothing changed.
    """
    if not plain or len(status) < len(loaded.notebooks) or set(status.values()) != {"ok"}:
        print("The time is not recorded: it takes a quick run of all notebooks (--force), all of them well.")
        return
    times = {"study_quick_seconds": (round(seconds), len(status), "make study")}
    clock = loaded.root / "build" / "test_seconds"  # left there by `make test`
    seconds_of_tests = clock.read_text().strip() if clock.is_file() else ""
    if seconds_of_tests.isdigit():
        times["test_seconds"] = (int(seconds_of_tests), 0, "make test")
    for name, (value, n, source) in times.items():
        results.headline(name, value, math.nan, math.nan, n, "s", source, "full", loaded.root)


if __name__ == "__main__":
    sys.exit(main())

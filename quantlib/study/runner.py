"""`python -m quantlib.study.runner`: run the course's notebooks, skip what is unchanged, write a report.

doit decides what is unchanged; papermill executes, one process a notebook. Exit status: 0 all ran,
1 a notebook failed, 2 a bad argument, 130 stopped by Ctrl-C.
"""

import argparse
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain
from doit.exceptions import TaskFailed
from doit.tools import config_changed

from quantlib.errors import QuantlibError
from quantlib.study import report, results
from quantlib.study.console import Progress, spell
from quantlib.study.jobs import Job, check_disk, parse_parameters, plan
from quantlib.study.manifest import Course, course
from quantlib.subject import layout
from quantlib.subject.command import require_device


def execute(job: Job) -> TaskFailed | None:
    """Doit's action: run the notebook; its failure as doit wants it."""
    path = job.course.path(job.notebook)
    if not path.is_file():
        job.record.unlink(missing_ok=True)
        return TaskFailed(
            f"notebooks/{path.name} is missing; `git checkout notebooks/{path.name}` restores it."
        )
    record = job.run()
    return None if record["status"] == "ok" else TaskFailed(record["error"]["message"])


def tasks(jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """One doit task a notebook."""
    for job in jobs:
        settings = {
            **{k: repr(v) for k, v in job.all_parameters().items()},
            "profile": job.profile,
            "device": job.device,
            "torch": version("torch"),
            "settings": repr(job.course.profile(job.profile, job.notebook)),
        }
        present = job.course.path(job.notebook).is_file()
        yield {
            "basename": job.notebook.number,
            "actions": [(execute, [job])],
            "file_dep": [str(path) for path in job.inputs()],
            "targets": [str(job.output)],
            "uptodate": [config_changed(settings), present],
            "verbosity": 2,
        }


def run(jobs: Sequence[Job], progress: Progress, force: bool = False) -> int:
    """Run the jobs under doit; its exit code (0, or not). `progress` has the status of each notebook."""
    folder = jobs[0].folder
    check_disk(folder)
    namespace = {
        "DOIT_CONFIG": {
            "reporter": progress,
            "dep_file": str(folder / ".state.json"),
            "backend": "json",
            "continue": True,
            "check_file_uptodate": "md5",
        },
        "task_study": lambda: tasks(jobs),
    }
    options = ["--always-execute"] if force else []
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
        help="enter the time of a whole quick run, and of the last `make test`, in results/headline.csv",
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


def _run_and_report(loaded: Course, jobs: Sequence[Job], options: argparse.Namespace, began: float) -> int:
    # A run started in the background of a script inherits an ignored SIGINT; it should still stop cleanly.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    interrupted, code = False, 1
    progress = Progress(jobs)
    try:
        code = run(jobs, progress, options.force)
    except KeyboardInterrupt:
        interrupted = True
    seconds, status = time.monotonic() - began, progress.status
    page = report.write(loaded, options.profile, seconds, status)
    if interrupted:
        print("\nStopped. Finished notebooks are kept; the same command goes on with the rest.")
        return 130
    failed = [number for number, word in status.items() if word == "failed"]
    word = f"FAILED: {', '.join(failed)}" if failed else "all well"
    print(f"{len(status)} notebooks in {spell(seconds)}, {word}. Report: {page.relative_to(loaded.root)}")
    if options.record_time:
        _record_time(loaded, options.profile, seconds, status)
    return 1 if code or failed else 0


def _record_time(loaded: Course, profile: str, seconds: float, status: Mapping[str, str]) -> None:
    """Enter the seconds of a quick run of all notebooks (say why not otherwise) and of the tests."""
    if profile != "quick" or len(status) < len(loaded.notebooks) or set(status.values()) != {"ok"}:
        print("The time is not recorded: it takes a quick run of all notebooks (--force), all of them well.")
        return
    times = {"study_quick_seconds": (round(seconds), len(status), "make study")}
    clock = loaded.root / "build" / "test_seconds"  # left there by `make test`
    if clock.is_file():
        times["test_seconds"] = (int(clock.read_text()), 0, "make test")
    for name, (value, n, source) in times.items():
        results.headline(name, value, math.nan, math.nan, n, "s", source, "full", loaded.root)


if __name__ == "__main__":
    sys.exit(main())

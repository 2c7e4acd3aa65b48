"""`python -m quantlib.study.runner`: run the course's notebooks, skip what is unchanged, write a report.

doit decides what is unchanged; papermill executes, one process a notebook. Exit status: 0 all ran, 1 a notebook
failed, 2 a bad argument, 130 stopped by Ctrl-C.
"""

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain
from doit.exceptions import TaskFailed
from doit.tools import config_changed

from quantlib.errors import QuantlibError
from quantlib.study import report, results
from quantlib.study.jobs import Job, check_device, check_disk, parse_parameters, plan, read_record
from quantlib.study.manifest import Course, course


class Progress:
    """doit's reporter: one line when a notebook starts, one when it ends, with the time left."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = {job.notebook.number: job for job in jobs}
        self.left = {number: expected(job) for number, job in self.jobs.items()}
        self.status: dict[str, str] = {}
        self.broken: list[str] = []

    def _say(self, number: str, text: str) -> None:
        place = list(self.jobs).index(number) + 1
        print(f"[{place}/{len(self.jobs)}] {number} {self.jobs[number].notebook.title}: {text}", flush=True)

    def initialize(self, tasks: object, selected: object) -> None:
        """Nothing to set up."""

    def get_status(self, task: Any) -> None:
        """Nothing to say while doit compares files."""

    def execute_task(self, task: Any) -> None:
        """Say that a notebook starts, and how long everything may still take."""
        self._say(task.name, f"running, about {spell(self.left[task.name])}; "
                             f"all: about {spell(sum(self.left.values()))} left")

    def add_success(self, task: Any) -> None:
        """Say that a notebook ran to its end."""
        record = read_record(self.jobs[task.name].record) or {}
        self._done(task.name, "ok", f"ok, {facts(self.jobs[task.name], record)}")

    def add_failure(self, task: Any, fail: Any) -> None:
        """Show the cell that failed and its error."""
        record = read_record(self.jobs[task.name].record) or {}
        error = record.get("error") or {"message": str(fail.get_msg()).strip()}
        self._done(task.name, "failed", f"FAILED, {facts(self.jobs[task.name], record)}")
        for line in str(error.get("source", "")).splitlines():
            print(f"    | {line}")
        print(f"    {error['message']}", flush=True)

    def skip_uptodate(self, task: Any) -> None:
        """Say that nothing it depends on has changed."""
        self._done(task.name, "unchanged", "unchanged, skipped")

    def skip_ignore(self, task: Any) -> None:
        """Never used: nothing is ignored."""

    def _done(self, number: str, status: str, text: str) -> None:
        self.status[number] = status
        self.left[number] = 0.0
        self._say(number, text)

    def cleanup_error(self, exception: Any) -> None:
        """Keep what doit says when it cannot clean up."""
        self.broken.append(exception.get_msg())

    def runtime_error(self, message: str) -> None:
        """Keep what doit says when it cannot go on."""
        self.broken.append(message)

    def teardown_task(self, task: Any) -> None:
        """Nothing to tear down."""

    def complete_run(self) -> None:
        """Show what doit could not do."""
        for message in self.broken:
            print(message, file=sys.stderr)


def execute(job: Job) -> TaskFailed | None:
    """doit's action: run the notebook; its failure as doit wants it."""
    path = job.course.path(job.notebook)
    if not path.is_file():
        job.record.unlink(missing_ok=True)
        return TaskFailed(f"notebooks/{path.name} is missing; `git checkout notebooks/{path.name}` restores it.")
    record = job.run()
    return None if record["status"] == "ok" else TaskFailed(record["error"]["message"])


def tasks(jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """One doit task a notebook."""
    for job in jobs:
        settings = {**{k: repr(v) for k, v in job.all_parameters().items()}, "profile": job.profile,
                    "device": job.device, "torch": version("torch"),
                    "settings": repr(job.course.profile(job.profile, job.notebook))}
        present = job.course.path(job.notebook).is_file()
        yield {"basename": job.notebook.number, "actions": [(execute, [job])],
               "file_dep": [str(path) for path in job.inputs()], "targets": [str(job.output)],
               "uptodate": [config_changed(settings), present], "verbosity": 2}


def run(jobs: Sequence[Job], force: bool = False) -> tuple[int, dict[str, str]]:
    """Run the jobs under doit; its exit code (0, or not) and the status of each notebook."""
    progress = Progress(jobs)
    folder = jobs[0].folder
    check_disk(folder)
    namespace = {
        "DOIT_CONFIG": {"reporter": progress, "dep_file": str(folder / ".state.json"), "backend": "json",
                        "continue": True, "check_file_uptodate": "md5"},
        "task_study": lambda: tasks(jobs),
    }
    options = ["--always-execute"] if force else []
    code = DoitMain(ModuleTaskLoader(namespace)).run(["run", *options, *progress.jobs])
    return int(code or 0), progress.status


def expected(job: Job) -> float:
    """How many seconds a notebook should take: what it took last, else what course.toml says."""
    record = read_record(job.record)
    took = record.get("seconds") if record and record.get("status") == "ok" else None
    return float(took or 60.0 * job.notebook.minutes[job.profile])


def facts(job: Job, record: dict[str, Any]) -> str:
    """Seconds against budget and peak memory, in words."""
    budget = 60.0 * job.notebook.minutes[job.profile]
    text = f"{record.get('seconds', 0):.0f} s of {budget:.0f} s"
    return text + (f", peak {record['peak_mb'] / 1000:.1f} GB" if record.get("peak_mb") else "")


def spell(seconds: float) -> str:
    """A duration for people: "45 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def listing(loaded: Course) -> str:
    """The notebooks as a table: number, title, minutes by profile."""
    lines = [f"{'':4}{'title':32}" + "".join(f"{name + ' (min)':>14}" for name in loaded.profiles)]
    for nb in loaded.notebooks:
        lines.append(f"{nb.number:4}{nb.title:32}" + "".join(f"{nb.minutes[name]:>14g}" for name in loaded.profiles))
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m quantlib.study.runner", description=__doc__.splitlines()[0])
    made.add_argument("--profile", default="quick", help="quick (default) or full")
    made.add_argument("--only", action="append", default=[], metavar="NN", help="this notebook; may be repeated")
    made.add_argument("--from", dest="since", metavar="NN", help="this notebook and those after it")
    made.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE",
                      help="change a parameter; the results then go to build/results/PROFILE-changed")
    made.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    made.add_argument("--force", action="store_true", help="run also what is unchanged")
    made.add_argument("--list", action="store_true", help="list the notebooks and stop")
    made.add_argument("--record-time", action="store_true",
                      help="enter the time of a whole quick run as quick_study_seconds in results/headline.csv")
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
        check_device(options.device)
        jobs = plan(loaded, options.profile, options.only, options.since,
                    parse_parameters(options.parameters), options.device)
        if not jobs:
            print("No notebook is left by --only and --from together.", file=sys.stderr)
            return 2
        check_disk(jobs[0].folder)
    except QuantlibError as error:
        print(error, file=sys.stderr)
        return 2
    return _run_and_report(loaded, jobs, options, began)


def _run_and_report(loaded: Course, jobs: Sequence[Job], options: argparse.Namespace, began: float) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    interrupted, code, status = False, 1, {}
    try:
        code, status = run(jobs, options.force)
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.monotonic() - began
    page = report.write(loaded, options.profile, seconds, status)
    if interrupted:
        print("\nStopped. Finished notebooks are kept; the same command goes on with the rest.")
        return 130
    failed = [number for number, word in status.items() if word == "failed"]
    word = f"FAILED: {', '.join(failed)}" if failed else "all well"
    print(f"{len(status)} notebooks in {spell(seconds)}, {word}. Report: {page.relative_to(loaded.root)}")
    whole = len(jobs) == len(loaded.notebooks) and set(status.values()) == {"ok"} and options.profile == "quick"
    if options.record_time and whole:
        results.headline("quick_study_seconds", round(seconds), float("nan"), float("nan"), len(jobs), "s",
                         "make study", "full", loaded.root)
    return 1 if code or failed else 0


if __name__ == "__main__":
    sys.exit(main())

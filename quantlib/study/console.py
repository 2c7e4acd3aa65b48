"""What a run of the study says on the screen."""

import sys
from collections.abc import Sequence
from typing import Any

from quantlib.study.jobs import Job
from quantlib.study.process import read_record


class Progress:
    """doit's reporter: one line when a notebook starts, one when it ends, with the time left."""

    def __init__(self, jobs: Sequence[Job], force: bool = False) -> None:
        self.jobs = {job.notebook.number: job for job in jobs}
        waiting = {number: force or not job.is_done() for number, job in self.jobs.items()}
        self.left = {number: waiting[number] * expected(job) for number, job in self.jobs.items()}
        self.status: dict[str, str] = {}
        self.broken: list[str] = []

    def _say(self, number: str, text: str) -> None:
        place = list(self.jobs).index(number) + 1
        print(f"[{place}/{len(self.jobs)}] {number} {self.jobs[number].notebook.title}: {text}", flush=True)

    def initialize(self, tasks: object, selected: object) -> None:
        """Nothing to set up."""

    def get_status(self, task: Any) -> None:
        """Nothing to say while it is found out what is done."""

    def execute_task(self, task: Any) -> None:
        """Say that a notebook starts, and how long everything may still take."""
        self._say(
            task.name,
            f"running, about {spell(self.left[task.name])}; all: about {spell(sum(self.left.values()))} left",
        )

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

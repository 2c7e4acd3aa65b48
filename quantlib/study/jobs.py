"""What a run of the study consists of: which notebooks, with which parameters, depending on which files."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papermill

from quantlib.errors import StudyError
from quantlib.study import execute, origin, results
from quantlib.study.execute import Order
from quantlib.study.manifest import Course, Notebook
from quantlib.study.process import crashed, read_record, stop, stopped, write_record
from quantlib.subject import checkpoints

FOLDERS = ("QUANTLIB_DATA", "QUANTLIB_CHECKPOINTS")
"""Settings that name a folder."""
WHERE = frozenset({"SCHEDULER"})
"""Parameters that say where something is computed and not what: the results are those of an unchanged run."""
RESERVED = {"PROFILE": "--profile", "DEVICE": "--device"}
"""Parameters that have an option of their own."""
HEADLINE = "results/headline.csv"
"""The figures that README and scoreboard show."""
NEEDED_BYTES = 200e6
"""Free disk that a run needs."""
LIBRARY = Path(results.__file__).parents[1]
"""The folder of the library."""
EXECUTE = Path(execute.__file__)
"""Started by its path, not as a module: so the process that waits for the kernel never imports torch."""


@dataclass(frozen=True)
class Job:
    """One notebook to run, and everything that decides whether it must."""

    course: Course
    notebook: Notebook
    profile: str
    device: str
    parameters: Mapping[str, Any]  # those the user gave and this notebook has
    known: frozenset[str]  # all that this notebook has

    @property
    def folder(self) -> Path:
        """Where the executed notebooks of this profile go."""
        return self.course.root / "build" / "study" / self.profile

    @property
    def output(self) -> Path:
        """The executed copy of the notebook."""
        return self.folder / self.notebook.file

    @property
    def record(self) -> Path:
        """The record of its last run."""
        return self.folder / "records" / f"{self.notebook.number}.json"

    @property
    def limit(self) -> float:
        """The seconds after which it is stopped."""
        return 60.0 * float(self.course.profile(self.profile, self.notebook)["minutes_limit"])

    def all_parameters(self) -> dict[str, Any]:
        """What papermill is given: the user's, and profile and device where the notebook has them."""
        offered = {"PROFILE": self.profile, "DEVICE": self.device}
        return {name: value for name, value in offered.items() if name in self.known} | dict(self.parameters)

    def inputs(self) -> list[Path]:
        """The files whose change makes it run again.

        Recorded results are among them: those that it names; its own, which a quick run shows; and every
        claim and score for whoever reads the headline figures.
        """
        root, recorded = self.course.root, self.course.root / "results"
        kept = [checkpoints.ROOT / name for name in (checkpoints.INDEX, checkpoints.COMPRESSED)]
        listed = [self.course.path(self.notebook), root / "course.toml", *kept]
        read = [root / name for name in self.notebook.reads if name.startswith("results/")]
        if self.profile != "full":
            read += [recorded / f"{name}.csv" for name in self.notebook.writes]
        if HEADLINE in self.notebook.reads:
            own = self.notebook.number
            judged = [*recorded.glob("claims_*.csv"), *recorded.glob("scores_*.csv")]
            read += sorted(path for path in judged if not path.stem.endswith(f"_{own}"))
        code = [path for ending in ("py", "mplstyle", "toml") for path in LIBRARY.rglob(f"*.{ending}")]
        return [path for path in (*listed, *read, *sorted(code)) if path.is_file()]

    def key(self) -> str:
        """A digest of all that decides whether it must run again: settings, versions, bytes of its inputs."""
        said = {
            "parameters": {name: repr(value) for name, value in self.all_parameters().items()},
            "profile": self.profile, "device": self.device,
            "versions": origin.versions(),
            "settings": repr(self.course.profile(self.profile, self.notebook)),
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        for path in self.inputs():
            content = path.read_bytes()
            if path == self.course.root / HEADLINE:  # its own figures are no reason to run again
                lines = content.decode(errors="replace").splitlines()
                own = f",{self.notebook.number}_"
                content = "\n".join(line for line in lines if own not in line[line.rfind(",") :]).encode()
            digest.update(f"\n{path.name} {len(content)}\n".encode() + content)
        return digest.hexdigest()

    def is_done(self) -> bool:
        """Whether its last run went well, with the inputs and settings of now."""
        record = read_record(self.record) or {}
        present = self.output.is_file() and self.course.path(self.notebook).is_file()
        return record.get("status") == "ok" and present and record.get("key") == self.key()

    def run(
        self, notebook: Path | None = None, output: Path | None = None, record: Path | None = None
    ) -> dict[str, Any]:
        """Run it (or a sibling: its solutions) in a process of its own, stop it at its limit; the record.

        Ctrl-C stops the process and the kernel below it, and is passed on.
        """
        notebook, output = notebook or self.course.path(self.notebook), output or self.output
        record = record or self.record
        record.parent.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        for made in (output, output.with_suffix(".html")):
            made.unlink(missing_ok=True)
        bar = sys.stderr.isatty()
        order = Order(str(notebook), str(output), str(record), str(notebook.parent), self.all_parameters(),
                      int(self.limit) + 1, bar)  # fmt: skip
        command = [sys.executable, "-P", str(EXECUTE), order.to_json()]
        place: dict[str, Any] = {"env": self.environment(), "cwd": self.course.root}
        began = time.monotonic()
        with open(output.with_suffix(".log"), "w") as log:
            code = self._wait(subprocess.Popen(command, stdout=log, stderr=None if bar else log,
                                               start_new_session=True, **place))  # fmt: skip
        seconds = round(time.monotonic() - began, 1)
        if code is None:
            return write_record(record, stopped(self.limit, output, seconds))
        return read_record(record) or write_record(record, crashed(output, code, seconds))

    def _wait(self, process: "subprocess.Popen[bytes]") -> int | None:
        """The exit code of a process, or None when it had to be stopped at its limit."""
        try:
            return process.wait(self.limit)
        except subprocess.TimeoutExpired:
            stop(process)
            return None
        except BaseException:
            stop(process)
            raise

    def environment(self) -> dict[str, str]:
        """The process's environment: this quantlib, this profile; changed parameters write elsewhere."""
        path = os.pathsep.join(
            part for part in (str(LIBRARY.parent), os.environ.get("PYTHONPATH", "")) if part
        )
        own = {
            "PYTHONPATH": path,
            "QUANTLIB_PROFILE": self.profile,
            "QUANTLIB_ROOT": str(self.course.root),
            "JUPYTER_PREFER_ENV_PATH": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        if set(self.parameters) - WHERE:
            own["QUANTLIB_RESULTS"] = f"build/results/{self.profile}-changed"
        for name in FOLDERS:  # the kernel runs in notebooks/, where a relative one would be another
            if os.environ.get(name):
                own[name] = str(Path(os.environ[name]).absolute())
        kept = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
        return kept | own


def plan(
    course: Course,
    profile: str,
    only: Sequence[str] = (),
    since: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> list[Job]:
    """The jobs of a run; StudyError, before anything runs, for whatever the course does not have."""
    course.profile(profile)
    first = course.notebook(since).number if since else ""
    wanted = {course.notebook(number).number for number in only} or {nb.number for nb in course.notebooks}
    chosen = [nb for nb in course.notebooks if nb.number in wanted and nb.number >= first]
    known = {nb.number: _known(course.path(nb)) for nb in chosen}
    given = dict(parameters or {})
    _refuse_unknown(given, sorted(set().union(*known.values())))
    jobs = []
    for nb in chosen:
        own = {name: value for name, value in given.items() if name in known[nb.number]}
        jobs.append(Job(course, nb, profile, device, own, known[nb.number]))
    return jobs


def _refuse_unknown(given: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if name in RESERVED:
            raise StudyError(f"{name} is set by {RESERVED[name]}, not by -p.")
        if name not in known:
            names = ", ".join(known) or "none"
            raise StudyError(f"No chosen notebook has a parameter {name!r}; they have {names}.")


def missing(notebook: Notebook) -> str:
    """What to say of a notebook that is not there."""
    return f"notebooks/{notebook.file} is missing; `git checkout notebooks/{notebook.file}` restores it."


def parse_parameters(texts: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` texts as a dict; a value that is not a Python literal is a string."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise StudyError(f"{text!r} is not NAME=VALUE, such as BITS=4.")
        try:
            found[name] = literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def check_disk(folder: Path) -> None:
    """StudyError when the disk has too little room for a run's notebooks and report."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{folder} cannot be made: {error.strerror or error}.") from error
    if not os.access(folder, os.W_OK):
        raise StudyError(f"{folder} may not be written to by you; change its owner, or take another clone.")
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise StudyError(
            f"Only {free / 1e6:.0f} MB are free where build/ lies; "
            f"make room for {NEEDED_BYTES / 1e6:.0f} MB and start again."
        )


def _known(path: Path) -> frozenset[str]:
    """The parameters that a notebook has; none when it is missing."""
    if not path.is_file():
        return frozenset()
    try:
        return frozenset(papermill.inspect_notebook(str(path)))
    except (ValueError, KeyError, AttributeError) as error:
        raise StudyError(f"notebooks/{path.name} cannot be read as a notebook: {error}") from error

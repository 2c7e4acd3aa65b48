"""What a notebook holds in its hand: settings, images, models, and the one way to record what it measured."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from quantlib.errors import CheckpointError, ConfigError, StudyError
from quantlib.study import origin, results, setup
from quantlib.study.judging import Judging
from quantlib.study.manifest import course
from quantlib.subject import checkpoints, data
from quantlib.subject.command import require_device
from quantlib.subject.data import Images
from quantlib.subject.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Load = Callable[[str], torch.nn.Module]
"""From the name of a checkpoint to its network."""


def start(number: str, profile: str | None = None, seed: int = 0, device: str | None = None) -> "Session":
    """Open a notebook's session, seed every generator, and say in one line what it will run on.

    `profile` None means QUANTLIB_PROFILE, else "quick"; `device` None means QUANTLIB_DEVICE, else "cpu".
    Raises StudyError for an unknown notebook or profile, ConfigError for a device that is not there.
    Introduced in notebook 00.
    """
    session = Session(number, profile, seed, device)
    print(session.headline_sentence())
    return session


def _threads(text: str) -> int:
    if not (text.isdigit() and int(text)):
        raise ConfigError(f"QUANTLIB_THREADS is {text!r}; give a number of threads, 1 or more.")
    return int(text)


class Session(Judging):
    """One run of one notebook; made by `start`."""

    def __init__(
        self, number: str, profile: str | None = None, seed: int = 0, device: str | None = None
    ) -> None:
        loaded = course()
        self.notebook = loaded.notebook(number)
        chosen = profile or os.environ.get("QUANTLIB_PROFILE") or "quick"
        super().__init__(loaded, self.notebook.number, chosen)
        self.settings = self.course.profile(self.profile, self.notebook)
        self.seed = seed
        self.device = require_device(device or os.environ.get("QUANTLIB_DEVICE") or "cpu")
        self.threads = _threads(os.environ.get("QUANTLIB_THREADS") or str(torch.get_num_threads()))
        torch.set_num_threads(self.threads)
        setup.seed_everything(seed)
        self._began = time.monotonic()
        self._checkpoints: dict[str, str] = {}
        self._data: dict[str, str] = {}
        self._tables: dict[str, pd.DataFrame] = {}

    def headline_sentence(self) -> str:
        """The line that opens a notebook."""
        minutes = self.notebook.minutes[self.profile]
        return (
            f"Notebook {self.number}, profile {self.profile}: about {minutes:g} min, "
            f"{self.settings['source']} CIFAR-10, {self.device}, {self.threads} threads, seed {self.seed}."
        )

    # What is measured ------------------------------------------------------------------------------------

    def images(self, split: str, n: int | None = None, seed: int | None = None) -> Images:
        """`n` images of a split (default: the profile's number, else all), announced in one line.

        The draw is fixed, the same for every notebook; for calibration it follows the session's seed.
        """
        every = data.load(split, source=self.settings["source"])
        wanted = n if n is not None else self.settings.get(f"images_{split}", len(every))
        draw = seed if seed is not None else (self.seed if split == "calibration" else 0)
        chosen = every.sample(wanted, seed=draw)
        self._data[split] = every.md5
        print(f"{split}: {len(chosen):,} of {len(every):,} images ({every.source} CIFAR-10)")
        return chosen

    def used(self, *several: Images) -> None:
        """Images that the notebook got elsewhere, from the plan of an experiment, join the provenance."""
        self._data |= {images.split: images.md5 for images in several if images.md5}

    def model(self, name: str = "resnet50", load: Load | None = None) -> torch.nn.Module:
        """The trained model of that name on the session's device, announced in one line.

        `load`: how, where `load_checkpoint` cannot know the network (`load_factorized`).
        """
        model = (load or checkpoints.load_checkpoint)(name).to(self.device)
        info = checkpoints.checkpoint_info(name)
        self._checkpoints[name] = digest = str(info["sha256"])
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name}: {count:,} parameters, {4 * count / 1e6:.2f} MB in float32, sha256 {digest[:8]}")
        if info.get("status"):
            print(f"{name} is a {info['status']}")
        return model

    def model_if_there(self, name: str, load: Load | None = None) -> torch.nn.Module | None:
        """`model`, or None and one sentence where it has not been trained yet."""
        try:
            checkpoints.checkpoint_info(name)
        except CheckpointError:
            print(f"checkpoints/{name} is not recorded yet.")
            return None
        return self.model(name, load)

    def file(self, name: str) -> Path:
        """A compressed or packed file of checkpoints/, which joins the provenance."""
        path = checkpoints.shipped_file(name)
        self._checkpoints[name] = checkpoints.sha256(path)
        return path

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Announce how long a block took: `with run.timed("calibration"): ...`."""
        began = time.perf_counter()
        yield
        print(f"{what}: {time.perf_counter() - began:.1f} s")

    # What is recorded ------------------------------------------------------------------------------------

    def row(self, method: str, measured: Any, metric: str | None = None, **columns: Any) -> dict[str, Any]:
        """A tidy row from an Evaluation (accuracy), a Comparison (drop) or a number with its `metric`."""
        if hasattr(measured, "drop"):
            found = ("drop", measured.drop, measured.low, measured.high, getattr(measured, "n", 0))
        elif hasattr(measured, "accuracy"):
            found = ("accuracy", measured.accuracy, measured.low, measured.high, measured.n)
        elif metric is None:
            raise StudyError(
                f"Say which metric {measured!r} is: run.row({method!r}, value, metric='sqnr_db')."
            )
        else:
            found = (metric, float(measured), math.nan, math.nan, 0)
        name, value, low, high, n = found
        own = {key: columns.pop(key) for key in ("low", "high", "n", "seed") if key in columns}
        given = {"low": low, "high": high, "n": n, "seed": self.seed, **own}
        return results.row(method, metric or name, value, **given, **columns)

    def record(self, experiment: str, rows: results.Rows) -> pd.DataFrame:
        """Write the rows as <number>_<experiment>.csv with their provenance; the rows as a data frame."""
        name = f"{self.number}_{experiment}"
        if name not in self.notebook.writes:
            raise StudyError(f"course.toml does not list {name!r} among what notebook {self.number} writes.")
        table = results.frame(rows)
        path = results.record(name, table, self.provenance(), self.profile, self.course.root)
        self._tables[name] = table
        print(f"recorded {len(table)} rows in {path.relative_to(self.course.root)}")
        return table

    def recorded(self, experiment: str, notebook: str | None = None) -> pd.DataFrame:
        """The committed full result; where there is none yet, a sentence and an empty frame, same columns.

        A result that was measured on other weights than checkpoints/ holds now is announced as such.
        """
        name = f"{notebook or self.number}_{experiment}"
        if not results.is_recorded(name, self.course.root):
            print(results.how_to_record(name, root=self.course.root))
            live = self._tables.get(name)
            return live.iloc[:0].copy() if live is not None else pd.DataFrame()
        table = results.load(name, "full", self.course.root)
        changed = origin.changed_since(name, self.course.root)
        if changed:
            print(f"{name} was recorded on earlier weights of {', '.join(changed)}.")
        return table

    def adopt(self, experiment: str) -> pd.DataFrame:
        """A result that a command of its own has recorded, such as a training log, passed on as it is.

        Its provenance stays that of the command. Empty, with a sentence, where there is none yet.
        """
        name, table = f"{self.number}_{experiment}", self.recorded(experiment)
        if len(table):
            results.pass_on(name, self.profile, self.course.root)
            self._tables[name] = table
        return table

    def show_recorded(self, experiment: str) -> None:
        """Display the recorded full run: a line a method, a column a metric, values with their intervals."""
        from IPython.display import display  # a notebook has it; scripts need not load it

        full = self.recorded(experiment)
        if full.empty:
            return
        bounded = full["low"].notna()
        told = [
            f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]" if known else f"{row.value:.0f}"
            for row, known in zip(full.itertuples(), bounded, strict=True)
        ]
        table = full.assign(told=told).pivot(index="method", columns="metric", values="told").fillna("")
        display(table.loc[list(dict.fromkeys(full["method"]))])
        print(f"n = {full['n'].max():,} test images, paired with FP32 image by image; 95 % intervals")

    def best(self, experiment: str) -> pd.DataFrame:
        """The committed full result, or this run's own rows where there is none yet."""
        found = self.recorded(experiment)
        return found if len(found) else self._tables[f"{self.number}_{experiment}"]

    def provenance(self) -> dict[str, Any]:
        """Where the numbers of this session come from."""
        seconds = time.monotonic() - self._began
        return origin.provenance(
            self.profile, device=self.device, seconds=seconds, seed=self.seed,
            checkpoints=self._checkpoints, data=self._data, root=self.course.root,
        )  # fmt: skip

    def predictions(self, name: str, evaluation: Evaluation) -> None:
        """Keep the prediction for every image, so that settings can later be compared image by image."""
        found, labels = np.asarray(evaluation.predictions), np.asarray(evaluation.labels)
        results.save_predictions(f"{self.number}_{name}", found, labels, self.profile, self.course.root)

    def headline(
        self, name: str, value: float, low: float = math.nan, high: float = math.nan, n: int = 0,
        unit: str = "", source: str | None = None,
    ) -> None:  # fmt: skip
        """Put a figure into headline.csv: results/ in a full run, build/ otherwise.

        `source` defaults to the experiment recorded last.
        """
        if source is None:
            source = next(reversed(self._tables), self.notebook.stem)
        results.headline(name, value, low, high, n, unit, source, self.profile, self.course.root)
        interval = "" if math.isnan(low) else f" [{low:.4g}, {high:.4g}]"
        print(f"{name} = {value:.4g}{interval} {unit}".rstrip() + (f", n = {n:,}" if n else ""))

    def recorded_predictions(self, name: str, notebook: str | None = None) -> Evaluation:
        """The evaluation behind predictions that a full run kept, for `compare`; StudyError without one."""
        kept = results.load_predictions(f"{notebook or self.number}_{name}", "full", self.course.root)
        return Evaluation.of(*kept)

    # What is shown ---------------------------------------------------------------------------------------

    def figure(self, name: str) -> "Figure":
        """Draw a course figure from the recorded full result, or from this run where there is none yet."""
        from quantlib.study import figures

        return figures.draw(name, live=self._tables, root=self.course.root)


__all__: Sequence[str] = ["Session", "start"]

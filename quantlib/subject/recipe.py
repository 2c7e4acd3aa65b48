"""The recipe: every setting of a training run in one committed TOML file."""

import math
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from quantlib.errors import ConfigError
from quantlib.subject.layout import cache_folder

RECIPES = Path(__file__).parent / "recipes"
"""The folder of the recipes."""

KINDS: dict[Any, Any] = {int: int, float: (int, float), str: str}
"""What a setting may be, by the type of its field."""
SPOKEN: dict[Any, str] = {int: "a whole number", (int, float): "a number", str: "a text", object: "a list"}
"""The same in words."""


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run; `stages` holds [epochs, resolution] pairs in order.

    A third number in a stage is its own `cutout`. `cycles`: [epochs, peak as a share of the rates] pairs in
    order, as many epochs in all; without them one cycle of everything. `start` names the checkpoint whose
    weights training starts from; without it they are random.
    Introduced in notebook 01.
    """

    name: str
    model: str
    stages: tuple[tuple[int, ...], ...]
    seed: int = 0
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    muon_learning_rate: float = 0.05
    muon_weight_decay: float = 0.01
    warmup: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    ema_decay: float = 0.998
    crop: int = 4
    cutout: int = 8
    start: str = ""
    cycles: tuple[tuple[int, float], ...] = ()

    @property
    def epochs(self) -> int:
        """The number of epochs of all stages together."""
        return sum(stage[0] for stage in self.stages)

    @property
    def folder(self) -> Path:
        """Where a run keeps its state unless told otherwise, in the user's cache.

        Hours of work: `make clean` and a new clone must not take them along.
        """
        return cache_folder() / "training" / self.name

    def stage(self, epoch: int) -> tuple[int, int]:
        """Pixels a side of the images, and of the square cut out of them, in one epoch counted from zero."""
        ends = accumulate(stage[0] for stage in self.stages)
        every = zip(self.stages, ends, strict=True)
        now = next((stage for stage, end in every if epoch < end), self.stages[-1])
        return now[1], now[2] if len(now) > 2 else self.cutout

    def resolution(self, epoch: int) -> int:
        """The image side in pixels of one epoch, counted from zero; after the last stage as in it."""
        return self.stage(epoch)[0]

    def rate_factor(self, epoch: float) -> float:
        """The share of the peak rate after `epoch` epochs: in each cycle linear up, then half a cosine to 0.

        Of a cycle with peak P, at its own progress p in 0..1:
        factor = P p / warmup                                         for p < warmup
        factor = P (1 + cos(pi (p - warmup) / (1 - warmup))) / 2      after it
        Source: the restarts of Loshchilov & Hutter 2017. Introduced in notebook 01.
        """
        for count, peak in self.whole_cycles():
            p = epoch / count
            if p < self.warmup:
                return peak * p / self.warmup
            if p < 1:
                return 0.5 * peak * (1 + math.cos(math.pi * (p - self.warmup) / (1 - self.warmup)))
            epoch -= count
        return 0.0

    def whole_cycles(self) -> tuple[tuple[int, float], ...]:
        """The cycles; one of everything where none are named."""
        return self.cycles or ((self.epochs, 1.0),)

    def extends(self, other: "Recipe") -> bool:
        """Whether this recipe begins with all of `other` and only adds cycles after it, or nothing."""
        known, same = other.whole_cycles(), replace(self, stages=other.stages, cycles=other.cycles)
        stages = [[recipe.stage(epoch) for epoch in range(other.epochs)] for recipe in (self, other)]
        return same == other and stages[0] == stages[1] and self.whole_cycles()[: len(known)] == known


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe by its name in quantlib/subject/recipes, or from a path to a TOML file.

    Raises ConfigError for a recipe that does not exist or a setting that is not known.
    Introduced in notebook 01.
    """
    return recipe_of(*read_settings(name_or_path))


def read_settings(name_or_path: str) -> tuple[str, dict[str, Any]]:
    """The name of a recipe and what its file says; for recipes that hold more than a Recipe does."""
    path = _file(name_or_path)
    try:
        return path.stem, tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def trained_by(name_or_path: str) -> str:
    """The module whose command trains a recipe, by the first lines of its file; "" where they name none."""
    named = re.search(r"python -m (quantlib\S+)", _file(name_or_path).read_text())
    return named.group(1) if named else ""


def read_table(
    name_or_path: str, table: str, known: Collection[str], needs: Mapping[str, str],
    changes: Mapping[str, Any] | None = None,
) -> tuple[Recipe, dict[str, Any]]:  # fmt: skip
    """A recipe that has a table of its own beside the settings of a Recipe, and that table.

    known: what the table may say; needs: what it must say, and what each of these is; changes: replace what
    it says. Raises ConfigError for a recipe without the table, and for a setting that is unknown or missing.
    """
    name, settings = read_settings(name_or_path)
    if not settings.get(table) or not isinstance(settings[table], dict):
        having = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml") if _has_table(path, table)))
        raise ConfigError(f"{name}.toml has no [{table}] table; these have one: {having}.")
    own = {**settings.pop(table), **(changes or {})}
    if unknown := set(own) - set(known):
        raise ConfigError(f"[{table}] of {name}.toml has unknown settings: {', '.join(sorted(unknown))}")
    if missing := next((setting for setting in needs if setting not in own), None):
        raise ConfigError(f"[{table}] of {name}.toml lacks {missing}, {needs[missing]}.")
    return recipe_of(name, settings), own


@contextmanager
def kinds_of(table: str, name: str) -> Iterator[None]:
    """ConfigError where a setting of a recipe's table turns out to be of the wrong kind."""
    try:
        yield
    except TypeError as error:
        raise ConfigError(f"[{table}] of {name}.toml has a setting of the wrong kind: {error}.") from None


def _has_table(path: Path, table: str) -> bool:
    return table in tomllib.loads(path.read_text())


def _file(name_or_path: str) -> Path:
    path = Path(name_or_path) if name_or_path.endswith(".toml") else RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise ConfigError(f"there is no recipe {name_or_path!r}; choose one of {known}, or name a .toml file")
    return path


def recipe_of(name: str, settings: dict[str, Any]) -> Recipe:
    """The Recipe of these settings; ConfigError for one that is not known."""
    known = {field.name: field.type for field in fields(Recipe)}
    if unknown := set(settings) - set(known):
        raise ConfigError(
            f"{name}.toml has settings that are not known: {', '.join(sorted(unknown))}; known are "
            f"{', '.join(known)}, and tables that the command in its first lines reads"
        )
    for setting, value in settings.items():
        wanted = KINDS.get(known[setting], object)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ConfigError(f"{name}.toml: {setting} is {value!r}; it must be {SPOKEN[wanted]}.")
    missing = {"model", "stages"} - set(settings)
    if missing:
        raise ConfigError(f"{name}.toml lacks {' and '.join(sorted(missing))}.")
    try:
        stages = tuple(tuple(int(number) for number in stage) for stage in settings["stages"])
        cycles = tuple((int(count), float(peak)) for count, peak in settings.get("cycles", ()))
    except (TypeError, ValueError):
        stages, cycles = (), ()
    if not stages or any(len(stage) not in (2, 3) or min(stage[:2]) < 1 for stage in stages):
        raise ConfigError(
            f"{name}.toml: stages are lists of epochs and pixels such as [[2, 24], [4, 32]], and cycles lists"
            " of epochs and a share of the rates"
        )
    recipe = Recipe(name=name, **{**settings, "stages": stages, "cycles": cycles})
    if recipe.batch_size < 1:
        raise ConfigError(f"{name}.toml: batch_size is {recipe.batch_size}; it must be at least 1.")
    if sum(count for count, _ in recipe.whole_cycles()) != recipe.epochs:
        raise ConfigError(
            f"{name}.toml: the cycles must have as many epochs in all as the stages, {recipe.epochs}"
        )
    return recipe

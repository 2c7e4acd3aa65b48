"""What the students of notebook 15 are: arms of an experiment, their recipe, where their runs are kept."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from quantlib.errors import ConfigError
from quantlib.subject import checkpoints
from quantlib.subject.campaign import campaign_images
from quantlib.subject.data import Images
from quantlib.subject.layout import cache_folder
from quantlib.subject.recipe import Recipe, kinds_of, read_table

TEACHERS = ("", "answers", "crops", "joint")
"""Who teaches a student: nobody, kept answers, the teacher on the student's crops, a twin beside it."""


@dataclass(frozen=True)
class Arm:
    """One way to train a student.

    weight_bits, activation_bits: 0 for float32; teacher: "" (none), "answers" (of the plan's trained teacher,
    kept), "crops" (it answers each crop) or "joint" (a float32 twin that trains beside it); trained: start
    from the plan's trained student; main: with every seed of the plan. Introduced in notebook 15.
    """

    name: str
    weight_bits: int = 0
    activation_bits: int = 0
    teacher: str = ""
    temperature: float = 1.0
    weight: float = 0.5
    trained: bool = False
    main: bool = False

    def __post_init__(self) -> None:
        if self.teacher not in TEACHERS or bool(self.weight_bits) != bool(self.activation_bits):
            raise ConfigError(
                f"An arm has a teacher of {TEACHERS}, and bits for both sides or none; not {self}."
            )


@dataclass(frozen=True)
class StudentPlan:
    """An experiment: the recipe that every arm follows, and the arms.

    teacher, trained: checkpoints; seeds: of the main arms, the others have the first only; source, images: as
    in `data.load`, and how many of train, validation and test (None: all). Introduced in notebook 15.
    """

    recipe: Recipe
    arms: tuple[Arm, ...]
    teacher: str = "resnet50"
    trained: str = "resnet20"
    seeds: tuple[int, ...] = (0,)
    source: str = "full"
    images: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ConfigError(f"Every arm needs a name of its own; they are {', '.join(names)}.")

    def runs(self) -> list[tuple[Arm, int]]:
        """Every (arm, seed)."""
        return [(arm, seed) for arm in self.arms for seed in (self.seeds if arm.main else self.seeds[:1])]

    def folder(self) -> Path:
        """Where its runs are kept: another recipe or other checkpoints have another folder."""
        known = [checkpoints.checkpoint_info(name)["sha256"] for name in self._reads()]
        what = [asdict(self.recipe), known, self.source, self.images]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return cache_folder() / "students" / f"{self.recipe.name}-{digest[:8]}"

    def split(self, name: str, data_root: str | None = None) -> Images:
        """Its images of train, validation or test."""
        return campaign_images(name, self.source, self.images, data_root)

    def _reads(self) -> list[str]:
        teacher = [self.teacher] if any(arm.teacher in ("answers", "crops") for arm in self.arms) else []
        return teacher + ([self.trained] if any(arm.trained for arm in self.arms) else [])


def load_plan(name_or_path: str) -> StudentPlan:
    """The plan of a recipe with a [students] table; ConfigError for one without, or with unknown settings.

    Introduced in notebook 15.
    """
    needs = {"arms": "a list of tables, [[students.arms]], one for each way to train"}
    recipe, own = read_table(
        name_or_path, "students", set(StudentPlan.__dataclass_fields__) - {"recipe"}, needs
    )
    try:
        arms = tuple(Arm(**arm) for arm in own.pop("arms"))
    except TypeError as error:
        raise ConfigError(f"An arm of {recipe.name}.toml lacks or misnames a setting: {error}.") from None
    with kinds_of("students", recipe.name):
        return StudentPlan(recipe, arms, seeds=tuple(own.pop("seeds", (0,))), **own)

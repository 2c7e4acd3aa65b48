"""The course as course.toml lists it: notebooks in order, profiles, and the claims each notebook settles."""

import os
import re
import tomllib
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from quantlib.errors import StudyError


@dataclass(frozen=True)
class Claim:
    """One saying of the field, the notebook that settles it, and what others have published about it."""

    id: str
    text: str
    notebook: str
    published: str = ""


@dataclass(frozen=True)
class Published:
    """A number that others have published, and the headline figure that stands beside it."""

    text: str
    value: str
    source: str
    headline: str


@dataclass(frozen=True)
class Notebook:
    """One notebook of the course; `minutes` and `settings` are keyed by profile."""

    number: str
    file: str
    title: str
    question: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    minutes: dict[str, float]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    omits: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """The file name without its extension, such as "03_activation_observers"."""
        return self.file.removesuffix(".ipynb")


@dataclass(frozen=True)
class Course:
    """Everything that course.toml says, checked."""

    root: Path
    title: str
    profiles: dict[str, dict[str, Any]]
    notebooks: tuple[Notebook, ...]
    claims: tuple[Claim, ...]
    published: tuple[Published, ...] = ()

    def notebook(self, number: str) -> Notebook:
        """The notebook of that number ("03" or "3"), file name or stem; StudyError lists the known ones."""
        wanted = Path(str(number)).name.removesuffix(".ipynb")
        wanted = wanted.zfill(2) if wanted.isdigit() else wanted
        for notebook in self.notebooks:
            if wanted in (notebook.number, notebook.stem):
                return notebook
        known = ", ".join(notebook.number for notebook in self.notebooks)
        raise StudyError(f"There is no notebook {number!r}; the course has {known}.")

    def profile(self, name: str, notebook: Notebook | None = None) -> dict[str, Any]:
        """The settings of a profile, with what the notebook changes for itself; StudyError if unknown."""
        if name not in self.profiles:
            raise StudyError(f"There is no profile {name!r}; choose one of {', '.join(self.profiles)}.")
        own = notebook.settings.get(name, {}) if notebook else {}
        return {**self.profiles[name], **own}

    def claim(self, identity: str) -> Claim:
        """The claim of that id; StudyError names the closest or lists them."""
        for claim in self.claims:
            if claim.id == identity:
                return claim
        ids = [claim.id for claim in self.claims]
        close = get_close_matches(identity, ids, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"course.toml has {', '.join(ids)}."
        raise StudyError(f"There is no claim {identity!r}; {hint}")

    def neighbours(self, notebook: Notebook) -> tuple[Notebook | None, Notebook | None]:
        """The notebook before and the one after, None at the ends."""
        place = self.notebooks.index(notebook)
        before = self.notebooks[place - 1] if place else None
        after = self.notebooks[place + 1] if place + 1 < len(self.notebooks) else None
        return before, after

    def path(self, notebook: Notebook) -> Path:
        """Where the notebook lies."""
        return self.root / "notebooks" / notebook.file


def find_root(start: Path | None = None) -> Path:
    """The folder of course.toml: QUANTLIB_ROOT, else the working folder or a parent, else this tree."""
    if os.environ.get("QUANTLIB_ROOT"):
        return Path(os.environ["QUANTLIB_ROOT"]).resolve()
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "course.toml").is_file():
            return folder
    raise StudyError("No course.toml here or above; run from the folder of the course or set QUANTLIB_ROOT.")


def course(root: Path | str | None = None) -> Course:
    """Read and check course.toml.

    Raises StudyError, in one sentence, for a file that is missing, not TOML, or inconsistent.
    """
    folder = Path(root).resolve() if root is not None else find_root()
    try:
        raw = tomllib.loads((folder / "course.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{folder.name}/course.toml, the list of notebooks, is missing.") from None
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"course.toml cannot be read: {error}.") from None
    try:
        loaded = Course(
            root=folder,
            title=raw.get("title", ""),
            profiles=raw["profiles"],
            notebooks=tuple(_notebook(entry, tuple(raw["profiles"])) for entry in raw["notebooks"]),
            claims=tuple(Claim(**entry) for entry in raw.get("claims", [])),
            published=tuple(Published(**entry) for entry in raw.get("published", [])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StudyError(f"course.toml lacks or misnames an entry: {error}.") from None
    _check(loaded)
    return loaded


def _notebook(entry: dict[str, Any], profiles: tuple[str, ...]) -> Notebook:
    return Notebook(
        number=entry["number"],
        file=entry["file"],
        title=entry["title"],
        question=entry["question"],
        reads=tuple(entry.get("reads", ())),
        writes=tuple(entry.get("writes", ())),
        minutes={profile: float(entry[f"minutes_{profile}"]) for profile in profiles},
        settings=entry.get("settings", {}),
        omits=tuple(entry.get("omits", ())),
    )


def _check(loaded: Course) -> None:
    """Raise StudyError for the first entry that contradicts another."""
    for name, settings in loaded.profiles.items():
        lacking = {"source", "minutes_limit"} - set(settings)
        if lacking:
            raise StudyError(f"course.toml: the profile {name!r} lacks {', '.join(sorted(lacking))}.")
    numbers = [notebook.number for notebook in loaded.notebooks]
    if numbers != sorted(set(numbers)):
        raise StudyError("course.toml must list its notebooks in order, each number once.")
    for notebook in loaded.notebooks:
        if not re.fullmatch(rf"{notebook.number}_[a-z0-9_]+\.ipynb", notebook.file):
            raise StudyError(f"course.toml: {notebook.file!r} should read {notebook.number}_name.ipynb.")
        for name in notebook.writes:
            if not name.startswith(notebook.number + "_"):
                raise StudyError(f"course.toml: notebook {notebook.number} cannot write {name!r}.")
    _check_claims(loaded, numbers)


def _check_claims(loaded: Course, numbers: list[str]) -> None:
    for claim in loaded.claims:
        if claim.notebook not in numbers:
            raise StudyError(
                f"course.toml: claim {claim.id!r} names {claim.notebook!r}, which it does not list."
            )
    ids = [claim.id for claim in loaded.claims]
    if len(set(ids)) != len(ids):
        raise StudyError("course.toml lists a claim twice.")

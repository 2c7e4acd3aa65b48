"""Which weights a recorded result was measured on, and whether checkpoints/ still holds the same ones."""

import json
from pathlib import Path
from typing import Any

from quantlib.errors import StudyError
from quantlib.study.manifest import find_root
from quantlib.subject import checkpoints


def changed_since(
    experiment: str, root: Path | None = None, index: dict[str, Any] | None = None
) -> tuple[str, ...]:
    """Names of the checkpoints that a recorded experiment read and that have other weights now, or none.

    Compares the sha256 in results/<experiment>.json with checkpoints/index.json (`index`: it, where the
    caller has read it); that of a file which is no trained network with the file itself. An experiment
    that is not recorded has none. Raises StudyError when the JSON is damaged. Introduced in notebook 19.
    """
    path = (root or find_root()) / "results" / f"{experiment}.json"
    if not path.is_file():
        return ()
    read = provenance_of(path).get("checkpoints", {})  # a training log read none
    now = checkpoints.checkpoint_index() if index is None else index
    return tuple(name for name, digest in read.items() if _digest(name, now) != digest)


def provenance_of(path: Path) -> dict[str, Any]:
    """Where a recorded result came from, of the JSON file beside it; StudyError when that is damaged."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text at all
        raise StudyError(f"results/{path.name} is damaged ({error}); restore it from git.") from error
    if not isinstance(found, dict):
        raise StudyError(f"results/{path.name} does not say where a result came from; restore it from git.")
    return found


def _digest(name: str, index: dict[str, Any]) -> str | None:
    """The sha256 of what checkpoints/ holds under that name now; None where it holds nothing."""
    if entry := checkpoints.find_entry(index, name):
        return str(entry["sha256"])
    path = checkpoints.ROOT / name
    return checkpoints.sha256(path) if path.is_file() else None


def outdated(root: Path | None = None) -> dict[str, tuple[str, ...]]:
    """Every recorded experiment that was measured on other weights than checkpoints/ holds, and which."""
    base, index = root or find_root(), checkpoints.checkpoint_index()
    names = [path.stem for path in sorted((base / "results").glob("[0-9][0-9]_*.json"))]
    found = {name: changed_since(name, base, index) for name in names}
    return {name: changed for name, changed in found.items() if changed}

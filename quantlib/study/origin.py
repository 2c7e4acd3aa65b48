"""Where a recorded result came from: commit, versions, machine, and weights that may have changed since."""

import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quantlib.errors import StudyError
from quantlib.study.manifest import find_root
from quantlib.subject import checkpoints
from quantlib.subject.benchmark import device_name, machine

LIBRARIES = (
    "quantlib", "torch", "torchvision", "torchao", "onnx", "onnxruntime", "openvino", "nncf", "numpy",
    "pandas",
)  # fmt: skip
"""Packages whose version can change a number."""


def provenance(
    profile: str,
    *,
    device: str = "cpu",
    seconds: float = 0.0,
    seed: int = 0,
    checkpoints: Mapping[str, str] | None = None,
    data: Mapping[str, str] | None = None,
    root: Path | None = None,
) -> dict[str, Any]:
    """Where a result came from: profile, commit, versions, CPU, instruction set, device, date, inputs."""
    return {
        "profile": profile,
        "seed": seed,
        "commit": commit(root),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
        "device": device_name(device),
        **environment(),
        "checkpoints": dict(checkpoints or {}),
        "data": dict(data or {}),
    }


def environment() -> dict[str, dict[str, Any]]:
    """The machine (CPU, instruction set, threads) and the versions of what can change a number."""
    computer = {key: value for key, value in machine().items() if key != "torch"}
    return {"machine": computer, "versions": versions()}


def commit(root: Path | None = None) -> str:
    """The tree's git commit, with "+" when library or notebooks differ from it; "unknown" without git."""
    base = root or find_root()
    try:
        head = _git(base, "rev-parse", "--short=12", "HEAD")
        changed = _git(base, "status", "--porcelain", "--", "quantlib", "course.toml", "notebooks")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if changed else "")


def versions() -> dict[str, str]:
    """The versions of the libraries that can change a number, those that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(base: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=base, capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


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

"""Recorded results: a tidy CSV for each experiment, and beside it a JSON that says where it came from."""

import fcntl
import json
import math
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from quantlib.errors import StudyError
from quantlib.study.manifest import find_root
from quantlib.subject.files import write_atomically

HEADLINE_COLUMNS = ("name", "value", "low", "high", "n", "unit", "source")
"""The columns of headline.csv."""
Rows: TypeAlias = pd.DataFrame | Sequence[Mapping[str, Any]]
"""Tidy rows: a data frame or dicts."""


def folder(profile: str, root: Path | None = None) -> Path:
    """Where a profile's results lie: results/ for full, build/results/<profile>/ for every other.

    QUANTLIB_RESULTS (set by the runner when a parameter is changed) moves all writing elsewhere, so that
    only an unchanged full run ever writes into results/.
    """
    base = root or find_root()
    if os.environ.get("QUANTLIB_RESULTS"):
        return base / os.environ["QUANTLIB_RESULTS"]
    return base / "results" if profile == "full" else base / "build" / "results" / profile


def row(
    method: str,
    metric: str,
    value: float,
    low: float = math.nan,
    high: float = math.nan,
    n: int = 0,
    seed: int = 0,
    **columns: Any,
) -> dict[str, Any]:
    """One measurement as a tidy row: method, the columns given, metric, value, low, high, n, seed."""
    measured = {"metric": metric, "value": float(value), "low": float(low), "high": float(high)}
    return {"method": method, **columns, **measured, "n": int(n), "seed": int(seed)}


def frame(rows: Rows) -> pd.DataFrame:
    """The rows as a data frame; StudyError when there are none or when a row lacks a column of the others."""
    if not len(rows):
        raise StudyError("There are no rows to record.")
    if isinstance(rows, pd.DataFrame):
        return rows.reset_index(drop=True)
    listed = [dict(entry) for entry in rows]
    for place, entry in enumerate(listed):
        different = set(listed[0]) ^ set(entry)
        if different:
            raise StudyError(f"Row {place} and row 0 differ in the columns {', '.join(sorted(different))}.")
    return pd.DataFrame(listed)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise StudyError(f"{path.name} could not be written: {error.strerror or error}.") from error


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a data frame as CSV, eight significant digits, atomically."""
    write_atomic(path, table.to_csv(index=False, float_format="%.8g", lineterminator="\n").encode())


def record(
    experiment: str, rows: Rows, origin: Mapping[str, Any], profile: str, root: Path | None = None
) -> Path:
    """Write <experiment>.csv and, beside it, <experiment>.json with its origin; the CSV's path."""
    path = folder(profile, root) / f"{experiment}.csv"
    table = frame(rows)
    write_table(path, table)
    write_atomic(
        path.with_suffix(".json"), to_json({**origin, "rows": len(table), "columns": list(table.columns)})
    )
    return path


def pass_on(experiment: str, profile: str, root: Path | None = None) -> None:
    """Copy a recorded full result, provenance and all, to where a profile's results lie."""
    base = root or find_root()
    source, goal = kept_in("full", base), folder(profile, base)
    for suffix in (".csv", ".json") if goal != source else ():
        write_atomic(goal / f"{experiment}{suffix}", (source / f"{experiment}{suffix}").read_bytes())


def load(experiment: str, profile: str = "full", root: Path | None = None) -> pd.DataFrame:
    """The recorded rows of an experiment such as "03_observers".

    Raises StudyError, naming the command that makes it, when it is not recorded.
    """
    base = root or find_root()
    path = kept_in(profile, base) / f"{experiment}.csv"
    if not path.is_file():
        raise StudyError(how_to_record(experiment, profile, base))
    return read_table(path)


def is_recorded(experiment: str, root: Path | None = None) -> bool:
    """Whether a full run has recorded an experiment, damaged or not."""
    return (kept_in("full", root or find_root()) / f"{experiment}.csv").is_file()


def how_to_record(experiment: str, profile: str = "full", root: Path | None = None) -> str:
    """What to say where a result is missing."""
    base = root or find_root()
    path = (kept_in(profile, base) / f"{experiment}.csv").relative_to(base)
    command = f"make study PROFILE={profile} ONLY={experiment.split('_')[0]}"
    return f"{path} is not recorded yet; `{command}` makes it."


def read_table(path: Path) -> pd.DataFrame:
    """A CSV as a data frame; StudyError, naming the file, when it is damaged."""
    try:
        return pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        place = "/".join(path.parts[-2:])
        raise StudyError(f"{place} is damaged and cannot be read: {error}.") from error


def upsert(path: Path, entries: pd.DataFrame, key: str) -> pd.DataFrame:
    """Replace the rows of a CSV that have the same key, add the new ones at the end, and write it.

    One process at a time: two notebooks that run at once must not lose each other's rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    turn = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if path.is_file():
            entries = _merged(read_table(path), entries, key)
        write_table(path, entries)
    finally:
        os.close(turn)
    return entries


def _merged(old: pd.DataFrame, entries: pd.DataFrame, key: str) -> pd.DataFrame:
    """The old rows with those of the same key replaced where they stood, then the new ones."""
    kept = old[~old[key].isin(entries[key])]
    order = {name: place for place, name in enumerate(old[key])}
    merged = entries if kept.empty else pd.concat([kept, entries], ignore_index=True)
    return merged.sort_values(
        key,
        kind="stable",
        key=lambda names: names.map(lambda name: order.get(name, len(order))),
        ignore_index=True,
    )


def headline(
    name: str,
    value: float,
    low: float,
    high: float,
    n: int,
    unit: str,
    source: str,
    profile: str,
    root: Path | None = None,
) -> Path:
    """Put one figure into headline.csv (of results/ for full runs, of build/ for others); its path."""
    path = folder(profile, root) / "headline.csv"
    entry = pd.DataFrame([[name, value, low, high, n, unit, source]], columns=list(HEADLINE_COLUMNS))
    upsert(path, entry, "name")
    return path


def save_predictions(
    name: str, predictions: np.ndarray, labels: np.ndarray, profile: str, root: Path | None = None
) -> Path:
    """Keep the predicted and true class of every image in predictions/<name>.npz, a byte each."""
    path = folder(profile, root) / "predictions" / f"{name}.npz"
    content = BytesIO()
    np.savez_compressed(content, predictions=predictions.astype(np.uint8), labels=labels.astype(np.uint8))
    write_atomic(path, content.getvalue())
    return path


def load_predictions(
    name: str, profile: str = "full", root: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The (predictions, labels) kept under a name such as "07_w8a8"; StudyError when there are none."""
    base = root or find_root()
    path = kept_in(profile, base) / "predictions" / f"{name}.npz"
    if not path.is_file():
        raise StudyError(f"{path.relative_to(base)} is not there; a {profile} run of its notebook makes it.")
    with np.load(path) as stored:
        return stored["predictions"].astype(np.int64), stored["labels"].astype(np.int64)


def kept_in(profile: str, base: Path) -> Path:
    """Where results are read from: full ones from results/, wherever this run writes."""
    return base / "results" if profile == "full" else folder(profile, base)


def to_json(content: Mapping[str, Any]) -> bytes:
    """The bytes of a provenance file."""
    return (json.dumps(content, indent=2, sort_keys=False, default=str) + "\n").encode()

"""Where CIFAR-10 may lie on this machine, in which layout, and whether its files are the published ones."""

import hashlib
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantlib.errors import DataError

PIXELS_PER_IMAGE = 3 * 32 * 32
"""Bytes of an image."""
RECORD_BYTES = 1 + PIXELS_PER_IMAGE
"""Bytes of an image and its label."""
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
"""Names of the files of training images."""
BATCHES = (*TRAIN_BATCHES, "test_batch")
"""Names of all six files."""
FETCH_COMMAND = "python -m quantlib.subject.fetch"
"""The command that fetches all of CIFAR-10."""

Records = NDArray[np.uint8]
"""Labels and pixels, uint8 (n, 3073)."""


@dataclass(frozen=True)
class Layout:
    """One published form of CIFAR-10: folder name, file suffix and the md5 of each of the six files."""

    folder: str
    suffix: str
    md5: dict[str, str]

    def path(self, folder: Path, batch: str) -> Path:
        """Path of one batch, e.g. `data_batch_1.bin`."""
        return folder / f"{batch}{self.suffix}"


# md5s published on the CIFAR-10 page's archive (binary) and in torchvision's datasets/cifar.py (pickles).
BINARY = Layout(
    "cifar-10-batches-bin",
    ".bin",
    {
        "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
)
"""The official binary form."""
PICKLE = Layout(
    "cifar-10-batches-py",
    "",
    {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
)
"""torchvision's form."""


def md5_of(data: bytes) -> str:
    """Hexadecimal md5, used against accidents and not against attackers."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@lru_cache(maxsize=64)
def _md5_of_file(path: str, size: int, modified: int) -> str:
    """md5 of a file; size and time of change are in the key, so that an edited file is read again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def problem(folder: Path, layout: Layout) -> str | None:
    """Say what is wrong with `folder` as a complete copy in `layout`, or None when all six md5s agree."""
    for batch in BATCHES:
        path = layout.path(folder, batch)
        try:
            stat = path.stat()
            found = _md5_of_file(str(path), stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            return f"{path.name} cannot be read ({error.strerror})"
        if found != layout.md5[batch]:
            return f"{path.name} is damaged (md5 {found}, expected {layout.md5[batch]})"
    return None


def cache_folder() -> Path:
    """The folder where fetched data is kept: `$XDG_CACHE_HOME/quantlib`, else `~/.cache/quantlib`.

    Introduced in notebook 01.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "quantlib"


def search_folders(root: Path | str | None = None) -> list[Path]:
    """Folders to look in, in order: `root` alone if given; else QUANTLIB_DATA, `./data`, the checkout's, the
    user's cache."""
    if root is not None:
        return [Path(root).expanduser()]
    folders = [Path.cwd() / "data"]
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists():  # notebooks run in notebooks/, yet mean the checkout's data/
        folders.append(checkout / "data")
    if named := os.environ.get("QUANTLIB_DATA"):
        folders.insert(0, Path(named).expanduser())
    return list(dict.fromkeys([*folders, cache_folder()]))


def _candidates(base: Path) -> Iterator[tuple[Path, Layout]]:
    for layout in (BINARY, PICKLE):
        for folder in (base / layout.folder, base):
            if any(layout.path(folder, batch).is_file() for batch in BATCHES):
                yield folder, layout


def survey(root: Path | str | None = None) -> tuple[tuple[Path, Layout] | None, list[str]]:
    """Find the first complete, verified copy, and collect why each place before it was passed over."""
    reasons: list[str] = []
    for base in search_folders(root):
        found = list(_candidates(base))
        if not found:
            reasons.append(f"{base}: no CIFAR-10 files")
        for folder, layout in found:
            trouble = problem(folder, layout)
            if trouble is None:
                return (folder, layout), reasons
            reasons.append(f"{folder}: {trouble}")
    return None, reasons


def locate(root: Path | str | None = None) -> Path | None:
    """Return the folder of a complete copy whose six md5s agree, or None.

    Looks where `search_folders` says: in `root` alone when it is given. The binary layout (`*.bin`) and
    torchvision's pickles both count. Introduced in notebook 00.
    """
    found, _ = survey(root)
    return found[0] if found else None


def require(root: Path | str | None = None) -> tuple[Path, Layout]:
    """Like `survey`, but raises DataError with every place and reason when there is no complete copy."""
    found, reasons = survey(root)
    if found is None:
        looked = "; ".join(reasons)
        raise DataError(
            f"The full CIFAR-10 is not on this machine ({looked}); run `make data` (or `{FETCH_COMMAND}`), "
            "or set QUANTLIB_DATA to a folder that holds it, or use the shipped images with source='slice'."
        )
    return found


def from_pickle(data: bytes) -> Records:
    """Turn one of torchvision's pickles, its md5 already checked, into records (n, 3073): label, R, G, B."""
    batch = pickle.loads(data, encoding="bytes")
    labels = np.asarray(batch[b"labels"], dtype=np.uint8)
    pixels = np.asarray(batch[b"data"], dtype=np.uint8)
    return np.concatenate([labels[:, None], pixels], axis=1)


def read_records(folder: Path, layout: Layout, batches: tuple[str, ...]) -> Records:
    """Read batches of a verified folder into one uint8 array (n, 3073), each row: label, R, G, B planes."""
    parts = []
    for batch in batches:
        data = layout.path(folder, batch).read_bytes()
        if layout is PICKLE:
            parts.append(from_pickle(data))
        else:
            parts.append(np.frombuffer(data, dtype=np.uint8).reshape(-1, RECORD_BYTES))
    return np.concatenate(parts)

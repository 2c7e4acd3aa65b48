"""The slice of CIFAR-10 that ships with quantlib: lossless mosaics, their labels and where they come from."""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quantlib.errors import DataError
from quantlib.subject import layout
from quantlib.subject.command import run_command
from quantlib.subject.layout import RECORD_BYTES, Records

FOLDER = Path(__file__).resolve().parent / "slice"
"""Where the slice lies."""
SPLIT_SEED = 20261010
"""Of the split into training and validation images."""
SLICE_SEED = 20261011
"""Of the slice."""
COLUMNS = 50
"""Images in a row of a mosaic."""
PER_CLASS = {"calibration": 100, "validation": 50, "test": 100}
"""Images of each class in the slice, by split."""
VALIDATION_PER_CLASS = 500
"""Validation images of each class in the full set."""

Indices = NDArray[np.int64]
"""Positions of images, int64."""


def stratified(labels: NDArray[Any], per_class: int, rng: np.random.Generator) -> Indices:
    """Draw `per_class` positions of every class 0..9 without replacement, in increasing order of position."""
    drawn = [rng.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in range(10)]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def split_indices(labels: NDArray[Any]) -> tuple[Indices, Indices]:
    """Split the 50,000 training images into positions (train 45,000, validation 5,000: 500 per class).

    Drawn with `numpy.random.default_rng(SPLIT_SEED)`, class by class, so it is the same on every machine.
    """
    validation = stratified(labels, VALIDATION_PER_CLASS, np.random.default_rng(SPLIT_SEED))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def draw(train_labels: NDArray[Any], test_labels: NDArray[Any]) -> dict[str, Indices]:
    """Choose the slice: calibration from the 45,000, validation from the 5,000, test from the test set.

    One `default_rng(SLICE_SEED)` draws the three in that order; each is then shuffled, so that its first n
    images are a fair sample of it.
    """
    rng = np.random.default_rng(SLICE_SEED)
    train, validation = split_indices(train_labels)
    chosen = {}
    for name, pool, labels in (
        ("calibration", train, train_labels),
        ("validation", validation, train_labels),
        ("test", np.arange(len(test_labels)), test_labels),
    ):
        chosen[name] = rng.permutation(pool[stratified(labels[pool], PER_CLASS[name], rng)])
    return chosen


def to_mosaic(records: Records) -> Records:
    """Lay records (n, 3073) out as one picture (rows * 32, COLUMNS * 32, 3), left to right, top to bottom."""
    images = records[:, 1:].reshape(-1, COLUMNS, 3, 32, 32)
    return images.transpose(0, 3, 1, 4, 2).reshape(-1, COLUMNS * 32, 3)


def from_mosaic(mosaic: Records, labels: NDArray[np.uint8]) -> Records:
    """Undo `to_mosaic`: cut the picture into records (n, 3073) with `labels` in front."""
    tiles = mosaic.reshape(-1, 32, COLUMNS, 32, 3).transpose(0, 2, 4, 1, 3)
    return np.concatenate([labels[:, None], tiles.reshape(-1, RECORD_BYTES - 1)], axis=1)


def read(split: str, folder: Path = FOLDER) -> Records:
    """Read one split of the slice as records (n, 3073); DataError when a file is missing or damaged."""
    try:
        entry = json.loads((folder / "slice.json").read_text(encoding="utf-8"))["splits"][split]
        with Image.open(folder / entry["file"]) as picture:
            mosaic = np.asarray(picture.convert("RGB"))
        records = from_mosaic(mosaic, np.array(entry["labels"], dtype=np.uint8))
        intact = hashlib.sha256(records.tobytes()).hexdigest() == entry["sha256"]
    except (OSError, ValueError, KeyError) as error:
        trouble = f"The shipped images in {folder} cannot be read ({error}); reinstall quantlib."
        raise DataError(trouble) from error
    if not intact:
        raise DataError(f"The shipped images {folder / entry['file']} are damaged; reinstall quantlib.")
    return records


def indices(split: str, folder: Path = FOLDER) -> Indices:
    """Positions of a slice's images in the full set (training set for calibration and validation)."""
    entry = json.loads((folder / "slice.json").read_text(encoding="utf-8"))["splits"][split]
    return np.array(entry["indices"], dtype=np.int64)


def write(folder: Path = FOLDER, root: Path | None = None) -> None:
    """Make the slice again from the full set; the result is the same on every machine."""
    where, form = layout.require(root)
    train = layout.read_records(where, form, layout.TRAIN_BATCHES)
    test = layout.read_records(where, form, ("test_batch",))
    splits = {}
    for name, chosen in draw(train[:, 0], test[:, 0]).items():
        records = (test if name == "test" else train)[chosen]
        file = f"{name}.webp"
        # exact=True and lossless=True: what is decoded is, byte for byte, what went in.
        picture = Image.fromarray(to_mosaic(records))
        picture.save(folder / file, lossless=True, exact=True, quality=100, method=6)
        splits[name] = {
            "file": file,
            "from": "test" if name == "test" else "train_all",
            "sha256": hashlib.sha256(records.tobytes()).hexdigest(),
            "labels": records[:, 0].tolist(),
            "indices": chosen.tolist(),
        }
    about = "sha256 is over the records: one label byte, then the R, G and B planes of 32 x 32 bytes"
    text = json.dumps({"about": about, "split_seed": SPLIT_SEED, "slice_seed": SLICE_SEED, "splits": splits})
    (folder / "slice.json").write_text(text + "\n", encoding="utf-8")


def main() -> int:
    """Command line: `python -m quantlib.subject.slices` rebuilds the shipped slice from the full set."""
    parser = argparse.ArgumentParser(description="Rebuild the shipped slice of CIFAR-10 from the full set.")
    parser.add_argument("--root", type=Path, help="folder of the full set (default: looked for)")
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder to write to")
    options = parser.parse_args()
    return run_command(lambda: write(options.to, options.root))


if __name__ == "__main__":
    sys.exit(main())

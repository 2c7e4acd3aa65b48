"""CIFAR-10 as tensors: the shipped slice or the full set, its splits, normalization and batches."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quantlib.errors import ConfigError, DataError
from quantlib.subject import layout, slices

MEAN = (0.49139968, 0.48215841, 0.44653091)
"""Mean of each channel over all training pixels, of 0..1."""
STD = (0.24703223, 0.24348513, 0.26158784)
"""Standard deviation of each channel over all training pixels, of 0..1."""
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Names of the ten classes, in the order of the labels."""
SPLITS = ("train", "train_all", "validation", "calibration", "test")
"""What can be loaded."""
SOURCES = ("slice", "full")
"""Where from: the shipped slice, or all of CIFAR-10."""


@dataclass(frozen=True)
class Images:
    """Labelled images as they are stored: bytes, not yet normalized.

    pixels: uint8 (n, 3, 32, 32), channels R, G, B, values 0..255; labels: int64 (n,), positions in CLASSES;
    md5: over pixels then labels, for the provenance of a result. Introduced in notebook 01.
    """

    pixels: Tensor
    labels: Tensor
    split: str
    source: str
    md5: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> "Images":
        """Return the images at `indices`, in that order, or those of a mask, with an md5 of their own."""
        places = np.asarray(indices)
        places = np.flatnonzero(places) if places.dtype == bool else places
        chosen = torch.as_tensor(places, dtype=torch.int64)
        pixels, labels = self.pixels[chosen], self.labels[chosen]
        return replace(self, pixels=pixels, labels=labels, md5=_md5(pixels, labels))

    def take(self, n: int, seed: int | None = None) -> "Images":
        """Return the first n images, or n drawn without replacement by `numpy.random.default_rng(seed)`.

        Numpy's generator, because torch's stream depends on the instruction set. ConfigError when n is not
        in 0..len.
        """
        if not 0 <= n <= len(self):
            have = f"the {self.source} {self.split} set has {len(self)}"
            raise ConfigError(f"Asked for {n} images, but {have}.")
        if seed is None:
            return self.subset(np.arange(n))
        return self.subset(np.random.default_rng(seed).choice(len(self), n, replace=False))

    def sample(self, n: int, seed: int) -> "Images":
        """`take(n, seed)`, or every image, in order, when there are no more than n."""
        return self if n >= len(self) else self.take(n, seed=seed)


def _md5(pixels: Tensor, labels: Tensor) -> str:
    digest = hashlib.md5(pixels.numpy().tobytes(), usedforsecurity=False)
    digest.update(labels.numpy().tobytes())
    return digest.hexdigest()


def _images(records: layout.Records, split: str, source: str) -> Images:
    pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    return Images(pixels, labels, split, source, _md5(pixels, labels))


def _full_records(split: str, root: Path | str | None) -> layout.Records:
    folder, form = layout.require(root)
    if split == "test":
        return layout.read_records(folder, form, ("test_batch",))
    records = layout.read_records(folder, form, layout.TRAIN_BATCHES)
    if split == "train_all":
        return records
    train, validation = slices.split_indices(records[:, 0])
    return records[validation if split == "validation" else train]


def load(split: str, source: str = "slice", root: Path | str | None = None) -> Images:
    """Load one split of CIFAR-10.

    source "slice": the images that ship with quantlib, checked by sha256: calibration (1,000 training
    images), validation (500) and test (1,000), all stratified. source "full": train (45,000), train_all
    (50,000), validation (5,000, 500 per class, none of them in train), calibration (the same 45,000) and
    test (10,000), read from `root` or wherever `layout.locate` finds them, checked by md5.

    Raises ConfigError for an unknown split or source; DataError when images are missing or damaged.
    Introduced in notebook 01.

    >>> len(load("test")), load("calibration").labels.bincount().tolist() == [100] * 10
    (1000, True)
    """
    if split not in SPLITS:
        raise ConfigError(f"There is no split '{split}'; choose one of {', '.join(SPLITS)}.")
    if source not in SOURCES:
        raise ConfigError(f"There is no source '{source}'; choose slice (shipped) or full (all of CIFAR-10).")
    if source == "full":
        return _images(_full_records(split, root), split, source)
    if split not in slices.PER_CLASS:
        raise DataError(
            f"The shipped slice has no '{split}' images, only {', '.join(slices.PER_CLASS)}; run "
            f"`make data` (or `{layout.FETCH_COMMAND}`) once and use source='full'."
        )
    return _images(slices.read(split), split, source)


def normalize(pixels: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Scale bytes to zero mean and unit variance: (pixels / 255 - mean) / std, channel by channel.

    pixels: (..., 3, height, width), values 0..255 of any dtype; returns float32 of the same shape. MEAN and
    STD are those of all 50,000 training images over every pixel. Introduced in notebook 01.
    """
    center = torch.tensor(mean, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    spread = torch.tensor(std, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    return (pixels.to(torch.float32) / 255 - center) / spread


def batches(
    images: Images, batch_size: int = 64, device: str | torch.device = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (x, labels) in order: x normalized float32 (b, 3, 32, 32), channels-last; the last may be short.

    Bytes travel to the device and are normalized there. ConfigError when batch_size is below 1.
    Introduced in notebook 01.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
    for start in range(0, len(images), batch_size):
        x = normalize(images.pixels[start : start + batch_size].to(device))
        labels = images.labels[start : start + batch_size].to(device)
        yield x.contiguous(memory_format=torch.channels_last), labels

"""Accuracy with its interval, and the paired comparison of two settings on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt

import numpy as np
import torch
from torch import nn

from quantlib.errors import ConfigError
from quantlib.progress import progress
from quantlib.subject import data
from quantlib.subject.data import Images
from quantlib.subject.modes import answering

Z95 = 1.959963984540054
"""The 97.5 % point of the standard normal."""


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson 95 % interval of a share of `correct` out of `n`, in percent.

    centre = (p + z^2/2n) / (1 + z^2/n);  half = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)
    Source: Wilson 1927. Introduced in notebook 01.

    >>> [round(x, 2) for x in wilson(9500, 10000)]
    [94.56, 95.41]
    """
    if not 0 <= correct <= n or n == 0:
        raise ConfigError(f"{correct} correct of {n} images is not a share; give 0 <= correct <= n and n > 0")
    p, spread = correct / n, 1 + z * z / n
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / spread
    centre = (p + z * z / (2 * n)) / spread
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class Evaluation:
    """Top-1 accuracy in percent with its Wilson interval, and every prediction behind it.

    predictions, labels: int64 (n,). Introduced in notebook 01.
    """

    accuracy: float
    low: float
    high: float
    n: int
    predictions: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, predictions: np.ndarray, labels: np.ndarray) -> "Evaluation":
        """Score predictions against labels."""
        correct = int((predictions == labels).sum())
        return cls(
            100 * correct / len(labels), *wilson(correct, len(labels)), len(labels), predictions, labels
        )

    def __str__(self) -> str:
        return f"{self.accuracy:.2f} % [{self.low:.2f}, {self.high:.2f}], n = {self.n}"


def predictions_of(evaluation: Evaluation) -> str:
    """The predicted class of every image, one digit each; ConfigError beyond ten classes. Notebook 09."""
    if evaluation.n and evaluation.predictions.max() > 9:
        raise ConfigError("Predictions are kept as one digit an image, which tells ten classes apart.")
    return "".join(map(str, evaluation.predictions))


def classes(predictions: str) -> np.ndarray:
    """The classes behind such digits, int64. Introduced in notebook 09."""
    return np.frombuffer(predictions.encode(), np.uint8).astype(np.int64) - ord("0")


def usual_batch(device: str) -> int:
    """The batch for networks that only answer: 16 on a CPU, 250 elsewhere.

    Larger ones cost a CPU time, because the system hands out and takes back their memory at every layer.
    """
    return 16 if torch.device(device).type == "cpu" else 250


@torch.no_grad()
def evaluate(
    model: nn.Module, images: Images, batch_size: int | None = None, device: str = "cpu"
) -> Evaluation:
    """Classify `images` and return the accuracy with interval, n and the predictions; device: the model's.

    `batch_size` None: see `usual_batch`. The model is put into eval mode for the measurement, see
    `answering`. Introduced in notebook 01.
    """
    if not len(images):
        raise ConfigError("There are no images to classify; take at least one.")
    batch_size = batch_size or usual_batch(device)
    steps = progress(
        data.batches(images, batch_size, device), "evaluate", -(-len(images) // batch_size), "batch"
    )
    with answering(model):
        predictions = torch.cat([model(x).argmax(1).cpu() for x, _ in steps])
    return Evaluation.of(predictions.numpy(), images.labels.numpy())


@dataclass(frozen=True)
class Comparison:
    """Two settings on the same images; `drop` is a - b in percentage points, positive when b is worse.

    low, high: 95 % bootstrap interval of the drop; changed: images whose prediction differs;
    only_a, only_b: images that one alone gets right; p_value: exact McNemar test.
    Introduced in notebook 01.
    """

    drop: float
    low: float
    high: float
    n: int
    changed: int
    only_a: int
    only_b: int
    p_value: float

    def __str__(self) -> str:
        interval = f"[{self.low:+.2f}, {self.high:+.2f}]"
        return f"drop {self.drop:+.2f} points {interval}, {self.changed} of {self.n} predictions changed"


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the exact two-sided McNemar p-value: a fair coin over the images that one alone gets right.

    p = min(1, 2 * sum over k <= min(a, b) of C(a+b, k) / 2^(a+b)). Source: McNemar 1947.

    >>> mcnemar(1, 5)
    0.21875
    """
    trials = only_a + only_b
    tail = sum(comb(trials, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**trials)


def compare(a: Evaluation, b: Evaluation, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two evaluations of the same images pairwise.

    The bootstrap draws images with replacement; each image scores +1 (a alone right), -1 (b alone right)
    or 0, so a resample is one multinomial draw of the three counts. Raises ConfigError when the two were
    not measured on the same images. Introduced in notebook 01.
    """
    if a.n != b.n or not np.array_equal(a.labels, b.labels):
        raise ConfigError(
            "the two evaluations are of different images; evaluate both on the same ones, in order"
        )
    right_a, right_b = a.predictions == a.labels, b.predictions == b.labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    shares = np.array([only_a, only_b, a.n - only_a - only_b]) / a.n
    draws = np.random.default_rng(seed).multinomial(a.n, shares, size=resamples)
    low, high = np.percentile(100 * (draws[:, 0] - draws[:, 1]) / a.n, [2.5, 97.5])
    changed = int((a.predictions != b.predictions).sum())
    drop = 100 * (only_a - only_b) / a.n
    return Comparison(drop, float(low), float(high), a.n, changed, only_a, only_b, mcnemar(only_a, only_b))


@dataclass(frozen=True)
class SeedsComparison:
    """Two methods over several seeds on the same images; `drop` is the mean of a - b in percentage points.

    low, high: 95 % interval; n: images; drops: of each seed. Introduced in notebook 12.
    """

    drop: float
    low: float
    high: float
    n: int
    drops: tuple[float, ...]

    def __str__(self) -> str:
        return f"drop {self.drop:+.2f} points [{self.low:+.2f}, {self.high:+.2f}], {len(self.drops)} seeds"


def compare_seeds(a: Sequence[Evaluation], b: Sequence[Evaluation]) -> SeedsComparison:
    """Compare two methods that were each trained with the same seeds, seed by seed and image by image.

        half = z sqrt(var_images / n + var_seeds / k)

    var_images: of an image's score, averaged over the k seeds; var_seeds: of the seeds' drops (0 for one
    seed). Each counts a part of the other, so the interval errs on the wide side. Raises ConfigError when the
    two are not of the same images and seeds. Introduced in notebook 12.
    """
    pairs = list(zip(a, b, strict=False))
    if len(a) != len(b) or not pairs or any(not np.array_equal(x.labels, y.labels) for x, y in pairs):
        raise ConfigError("compare the same seeds on the same images: one evaluation of each for every seed")
    right_a, right_b = (
        np.array([each.predictions == each.labels for each in side], float) for side in (a, b)
    )
    scores = right_a - right_b
    drops = 100 * scores.mean(1)
    spread = drops.var(ddof=1) / len(drops) if len(drops) > 1 else 0.0
    half = Z95 * sqrt(1e4 * scores.mean(0).var(ddof=1) / scores.shape[1] + spread)
    middle = float(drops.mean())
    return SeedsComparison(middle, middle - half, middle + half, scores.shape[1], tuple(drops.tolist()))

"""Weight sharing: k-means in one dimension, its starts, its exact optimum, and its price in bits.

A layer's weights are replaced by few shared values, the codebook, and an index for each weight. Which values?
Those with the least squared error: k-means. In one dimension clusters are intervals, so sorted values and
their running sums are all that is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from quantlib.errors import ConfigError, NonFiniteError

Values = NDArray[np.float64]
"""Values or centroids, float64."""


@dataclass(frozen=True, eq=False)
class Shared:
    """A layer's weights as `codebook[index]`: float32 (k,), and int64 of the weight's shape.

    Where there are zeros (pruned weights), `codebook[0]` is 0 and stays it.
    """

    codebook: Tensor
    index: Tensor

    @property
    def weight(self) -> Tensor:
        """The weights that the layer computes with."""
        return self.codebook[self.index]


def linear(values: ArrayLike, clusters: int, seed: int = 0) -> Values:
    """Centroids at equal distances from the least to the largest value. Introduced in notebook 13.

    >>> linear([0.0, 1.0, 4.0], 3).tolist()
    [0.0, 2.0, 4.0]
    """
    ordered = as_values(values, np.float32)
    return np.linspace(ordered.min(), ordered.max(), clusters)


def density(values: ArrayLike, clusters: int, seed: int = 0) -> Values:
    """Centroids at the quantiles (i + 1/2) / clusters: as many values around each. Introduced in notebook 13.

    Source: Han et al. 2016, "density-based initialization".
    """
    return np.quantile(as_values(values, np.float32), (np.arange(clusters) + 0.5) / clusters)


def plus_plus(values: ArrayLike, clusters: int, seed: int = 0) -> Values:
    """Centroids drawn from the values one by one, each with a chance as its squared distance to the nearest.

    Source: Arthur and Vassilvitskii 2007 (k-means++). Introduced in notebook 13.
    """
    every, rng = as_values(values), np.random.default_rng(seed)
    chosen = [float(rng.choice(every))]
    distance = np.square(every - chosen[0])
    for _ in range(clusters - 1):
        total = np.cumsum(distance)
        place = np.searchsorted(total, rng.random() * total[-1], side="right")
        chosen.append(float(every[min(int(place), len(every) - 1)]))
        np.minimum(distance, np.square(every - chosen[-1]), out=distance)
    return np.sort(chosen)


STARTS: dict[str, Callable[..., Values]] = {"linear": linear, "density": density, "plus_plus": plus_plus}
"""Where k-means begins. It ends in a local optimum that depends on it."""


SETTLED = 10_000
"""Rounds after which k-means stops at the latest. A layer of the trained ResNet-50 settles in up to 1,632 (64
values, linear start); after 100 of them its squared error can still be three times as large. A round is
cheap: it looks at the boundaries, not at the values.
"""


def kmeans(values: ArrayLike, centroids: ArrayLike, iterations: int = SETTLED) -> Values:
    """Lloyd's iteration in one dimension: each value to its nearest centroid, each centroid to its mean.

        boundary_j = (c_j + c_(j+1)) / 2;  c_j = mean of the values between two boundaries

    Stops when nothing moves. A centroid that no value is nearest to stays where it is. Returns the centroids,
    ascending. Source: Lloyd 1982. Introduced in notebook 13.
    """
    ordered = np.sort(as_values(values, np.float32)).astype(np.float64)
    running = np.concatenate([[0.0], np.cumsum(ordered)])
    found = np.sort(np.asarray(centroids, np.float64))
    for _ in range(iterations):
        edges = np.searchsorted(ordered, (found[:-1] + found[1:]) / 2)
        ends = np.concatenate([[0], edges, [len(ordered)]])
        count = np.diff(ends)
        means = np.where(count > 0, np.diff(running[ends]) / np.maximum(count, 1), found)
        if np.array_equal(means, found):
            break
        found = means
    return found


def optimum(values: ArrayLike, clusters: int) -> Values:
    """The centroids with the least squared error of all, by dynamic programming: O(clusters n^2), small n.

        D_k(j) = min over i of D_(k-1)(i) + error of one cluster over the sorted values i .. j-1

    Source: Wang and Song 2011 (Ckmeans.1d.dp). Raises ConfigError beyond 4,000 values: use `kmeans`.
    Introduced in notebook 13.

    >>> optimum([0.0, 0.1, 1.0, 1.2, 5.0], 3).round(2).tolist()
    [0.05, 1.1, 5.0]
    """
    ordered = np.sort(as_values(values))
    n = len(ordered)
    if n > 4000:
        raise ConfigError(f"{n} values would need {8 * n * n / 1e9:.1f} GB; `kmeans` comes close.")
    first = np.concatenate([[0.0], np.cumsum(ordered - ordered.mean())])
    second = np.concatenate([[0.0], np.cumsum(np.square(ordered - ordered.mean()))])
    size = np.maximum(np.arange(n + 1) - np.arange(n + 1)[:, None], 1)
    error = second - second[:, None] - np.square(first - first[:, None]) / size
    error[np.tril_indices(n + 1, -1)] = np.inf
    np.maximum(error, 0, out=error)
    best, cuts = error[0], []
    for _ in range(min(clusters, n) - 1):
        total = best[:, None] + error
        cuts.append(total.argmin(0))
        best = total.min(0)
    ends = [n]
    for cut in reversed(cuts):
        ends.append(int(cut[ends[-1]]))
    return np.array([part.mean() for part in np.split(ordered, sorted(set(ends[1:]) - {0, n}))])


def nearest(values: ArrayLike, centroids: ArrayLike) -> NDArray[np.int64]:
    """For each value the place of its nearest centroid; of two equally near, the lower.

    Introduced in notebook 13.
    """
    centroids = np.asarray(centroids, np.float64)
    return np.searchsorted((centroids[:-1] + centroids[1:]) / 2, values)


def squared_error(values: ArrayLike, centroids: ArrayLike) -> float:
    """Sum of the squared distances to the nearest centroids. Introduced in notebook 13."""
    every = np.asarray(values, np.float64)
    return float(np.square(every - np.asarray(centroids)[nearest(every, centroids)]).sum())


def share(
    weight: Tensor, clusters: int, start: str = "linear", iterations: int = SETTLED, seed: int = 0
) -> Shared:
    """Replace a layer's weights by at most `clusters` shared values; zeros stay zero and cost no cluster.

    weight: any shape, float32. Raises ConfigError for fewer than one cluster or an unknown start,
    NonFiniteError for NaN or infinity. Source: Han et al. 2016, section 3. Introduced in notebook 13.
    """
    if start not in STARTS:
        raise ConfigError(f"there is no start {start!r}; choose one of {', '.join(STARTS)}.")
    if clusters < 1:
        raise ConfigError(f"clusters is {clusters}; give at least 1.")
    values = weight.detach().cpu().numpy().ravel()
    left = values[values != 0]
    centroids = np.zeros(0)
    if len(left):
        centroids = kmeans(left, STARTS[start](left, clusters, seed), iterations)
    return shared(weight, centroids)


def shared(weight: Tensor, centroids: ArrayLike) -> Shared:
    """The weights that are not zero, each at its nearest centroid; what no weight has is dropped."""
    values = weight.detach().cpu().numpy()
    left = values != 0
    place = np.where(left, nearest(values, centroids) + 1, 0)
    every = np.concatenate([[0.0], np.asarray(centroids, np.float64)]).astype(np.float32)
    used = np.bincount(place.ravel(), minlength=len(every)) > 0
    index = (np.cumsum(used) - 1)[place]
    return Shared(torch.from_numpy(every[used]), torch.from_numpy(index))


def as_values(values: ArrayLike, narrow: type = np.float64) -> NDArray[Any]:
    """Numbers in one row, as float64; float32 ones as `narrow`, which may be kept for speed.

    Raises ConfigError when there are none, NonFiniteError for NaN or infinity.
    """
    given = np.asarray(values).ravel()
    found: NDArray[Any] = given.astype(narrow if given.dtype == np.float32 else np.float64, copy=False)
    if not len(found):
        raise ConfigError("There are no values to share.")
    if not np.isfinite(found).all():
        raise NonFiniteError("The values hold NaN or infinity; look for the step of training that made them.")
    return found

"""How far an approximation is from its reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quantlib.errors import ConfigError


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64, flattened, so that the sum over millions of values stays exact enough to compare."""
    if a.shape != b.shape:
        raise ConfigError(f"Two tensors of one shape are needed, not {tuple(a.shape)} and {tuple(b.shape)}.")
    if a.numel() == 0:
        raise ConfigError("Two empty tensors have no distance; pass at least one value.")
    return a.detach().double().flatten(), b.detach().double().flatten()


def mse(a: Tensor, b: Tensor) -> float:
    """Mean squared error, mean((a - b)**2), in squared units of the tensors, summed in float64.

    Raises ConfigError when the shapes differ or are empty. Introduced in notebook 02.

    >>> mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    2.0
    """
    a, b = _pair(a, b)
    return float((a - b).square().mean())


def sqnr_db(reference: Tensor, approximation: Tensor) -> float:
    """Signal to quantization-noise ratio in decibel: 20 * log10(|reference| / |reference - approximation|).

    +inf when the two are equal, -inf when the reference is all zero and they are not; 6.02 dB is one bit.
    Equal to `torch.ao.ns.fx.utils.compute_sqnr`. Raises ConfigError when the shapes differ or are empty.
    Introduced in notebook 02.

    >>> round(sqnr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])), 3)
    20.0
    """
    reference, approximation = _pair(reference, approximation)
    noise = torch.linalg.vector_norm(reference - approximation)
    if noise == 0:
        return float("inf")
    return float(20 * torch.log10(torch.linalg.vector_norm(reference) / noise))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation: Pearson's correlation of the ranks, ties sharing their mean rank; -1 to 1.

    nan when one side is all the same. Raises ConfigError for two lists of different length, of fewer than
    two values, or with a NaN. Introduced in notebook 09.

    >>> rank_correlation([1.0, 2.0, 3.0, 4.0], [10.0, 100.0, 1000.0, 20.0])
    0.4
    """
    if len(a) != len(b) or len(a) < 2 or np.isnan([*a, *b]).any():
        raise ConfigError(f"Two lists of one length, 2 or more, without NaN; not of {len(a)} and {len(b)}.")
    x, y = (_centred_ranks(np.asarray(values, dtype=float)) for values in (a, b))
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y / size) if size else float("nan")


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value, equal ones sharing their mean rank, less the mean of all ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts - 1) / 2)[which]
    return ranks - ranks.mean()

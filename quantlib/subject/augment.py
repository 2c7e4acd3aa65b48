"""Flips, crops and cutout on whole batches of tensors, drawn from a numpy generator."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def _from_numpy(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)


def random_flip(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirror each image left to right with probability one half; x is (n, c, h, w)."""
    mirrored = _from_numpy(rng.random(len(x)) < 0.5, x.device)
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def random_crop(x: Tensor, padding: int, rng: np.random.Generator) -> Tensor:
    """Shift each image by up to `padding` pixels both ways, the border filled by reflection.

    One gather for the batch: image i takes rows dy_i..dy_i+h and columns dx_i..dx_i+w of its padded self.
    """
    n, _, height, width = x.shape
    padded = F.pad(x, [padding] * 4, mode="reflect")
    dy, dx = (_from_numpy(rng.integers(0, 2 * padding + 1, n), x.device) for _ in range(2))
    rows = (dy[:, None] + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (dx[:, None] + torch.arange(width, device=x.device))[:, None, None, :]
    image = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[image, channel, rows, columns]


def cutout(x: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """Set one square of `size` pixels in each image to 0 (the mean, after normalization).

    The square's centre is anywhere in the image, so that it may hang over the border.
    Source: DeVries and Taylor 2017.
    """
    n, _, height, width = x.shape
    top, left = (_from_numpy(rng.integers(0, side, n) - size // 2, x.device) for side in (height, width))
    row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    inside_rows = (row >= top[:, None]) & (row < top[:, None] + size)
    inside_columns = (column >= left[:, None]) & (column < left[:, None] + size)
    return x.masked_fill((inside_rows[:, None, :, None]) & (inside_columns[:, None, None, :]), 0.0)


def resize(x: Tensor, resolution: int) -> Tensor:
    """Shrink images to `resolution` pixels a side by anti-aliased bilinear interpolation.

    Introduced in notebook 01.
    """
    if x.shape[-1] == resolution:
        return x
    return F.interpolate(x, size=(resolution, resolution), mode="bilinear", antialias=True)


def augment(x: Tensor, rng: np.random.Generator, crop: int = 4, hole: int = 8) -> Tensor:
    """Flip, crop and cut out: the training augmentation of the course, on a normalized batch.

    Introduced in notebook 01.
    """
    x = random_crop(random_flip(x, rng), crop, rng)
    return cutout(x, hole, rng) if hole else x


def mixed(x: Tensor, alpha: float, rng: np.random.Generator) -> Tensor:
    """Lay another image of the batch over each one: s x_i + (1 - s) x_j, s drawn from Beta(alpha, alpha).

    x: (n, c, h, w); each image has its own share s and its own j. Source: mixup, Zhang et al. 2018, with one
    share for all. Introduced in notebook 11.
    """
    share = _from_numpy(rng.beta(alpha, alpha, len(x)).astype(np.float32), x.device)[:, None, None, None]
    other = _from_numpy(rng.permutation(len(x)), x.device)
    return share * x + (1 - share) * x[other]

"""Augmentation: each image is one of the crops that plain slicing gives."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize as torchvision_resize

from quantlib.subject.augment import augment, cutout, mixed, random_crop, random_flip, resize


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_a_crop_is_a_window_of_the_padded_image(seed: int) -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    out = random_crop(x, 2, np.random.default_rng(seed))
    padded = F.pad(x, [2] * 4, mode="reflect")
    for image in range(4):
        windows = [padded[image, :, r : r + 8, c : c + 8] for r in range(5) for c in range(5)]
        assert any(torch.equal(out[image], window) for window in windows)


def test_crops_reach_every_shift() -> None:
    ramp = torch.arange(64.0).view(1, 1, 8, 8).repeat(500, 1, 1, 1)
    corners = random_crop(ramp, 2, np.random.default_rng(0))[:, 0, 4, 4]
    assert len(corners.unique()) == 25


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    x = torch.arange(3.0).view(1, 1, 1, 3).repeat(1000, 1, 1, 1)
    flipped = random_flip(x, np.random.default_rng(0))[:, 0, 0, 0] == 2
    assert 0.45 < flipped.float().mean() < 0.55


def test_cutout_clears_one_square_and_nothing_else() -> None:
    x = torch.ones(200, 3, 16, 16)
    out = cutout(x, 4, np.random.default_rng(0))
    holes = (out == 0).sum((1, 2, 3)) // 3
    assert holes.max() == 16 and holes.min() >= 4  # at a corner a quarter of the square is left
    assert torch.equal(out[:, 0], out[:, 2])


def test_the_same_generator_gives_the_same_batch() -> None:
    x = torch.rand(8, 3, 32, 32)
    once, twice = (augment(x, np.random.default_rng([1, 2]), 4, 8) for _ in range(2))
    assert torch.equal(once, twice)


def test_resize_keeps_the_mean_and_the_full_size() -> None:
    x = torch.rand(2, 3, 32, 32)
    assert resize(x, 32) is x
    assert resize(x, 24).shape == (2, 3, 24, 24)
    assert torch.allclose(resize(x, 16).mean(), x.mean(), atol=5e-3)
    for side in (16, 24):
        theirs = torchvision_resize(x, [side, side], antialias=True)
        assert torch.allclose(resize(x, side), theirs, atol=1e-5)


def test_mixed_images_are_shares_of_two() -> None:
    x = torch.randn(64, 3, 4, 4)
    out, rng = mixed(x, 1.0, np.random.default_rng(3)), np.random.default_rng(3)
    share, other = rng.beta(1.0, 1.0, 64), rng.permutation(64)
    for i in range(64):
        wanted = share[i] * x[i].double() + (1 - share[i]) * x[other[i]].double()
        torch.testing.assert_close(out[i].double(), wanted, rtol=1e-5, atol=1e-6)
    assert 0.3 < share.mean() < 0.7 and share.min() < 0.1 and share.max() > 0.9  # each its own
    same = torch.randn(1, 3, 4, 4).expand(8, -1, -1, -1)
    torch.testing.assert_close(mixed(same, 0.2, np.random.default_rng(0)), same)

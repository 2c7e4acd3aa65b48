"""The least-squared-error observer: its error formula, its search, its histogram."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantlib.quantization.affine import fake_quantize, qparams_from_range
from quantlib.quantization.metrics import mse
from quantlib.quantization.observers import ExactHistogram, expected_error, make_observer
from quantlib.quantization.observers.error import tails


def samples(kind: str, n: int = 60_000, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=g)
    if kind == "outlier":
        x[17] = 400.0
    return {
        "normal": x,
        "relu": x.relu(),
        "shifted": x + 2,
        "laplace": x * x.abs(),
        "outlier": x,
        "sparse": x * (torch.rand(n, generator=g) > 0.9),
        "relu6": (3 * x).clamp(0, 6),
        "negative": -x.abs(),
        "uniform": torch.rand(n, generator=g),
    }[kind]


KINDS = ["normal", "relu", "shifted", "laplace", "outlier", "sparse", "relu6", "negative", "uniform"]
SCHEMES = [{}, {"signed": True, "symmetric": True}, {"symmetric": True, "signed": True, "narrow_range": True}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_expected_error_is_the_measured_error(kind: str, bits: int) -> None:
    x = samples(kind)
    histogram = ExactHistogram(x.device)
    histogram.add(x, x.min().item(), x.max().item())
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    share = torch.tensor([1.0, 0.8, 0.5, 0.3])
    for scheme in SCHEMES:
        grids = qparams_from_range(low * share, high * share, bits=bits, axis=0, **scheme)
        for index, expected in enumerate(expected_error(histogram, grids).tolist()):
            grid = qparams_from_range(low * share[index], high * share[index], bits=bits, **scheme)
            measured = mse(x, fake_quantize(x, grid))
            # relu6 has an atom at 6, which a bin smears over its width.
            assert expected == pytest.approx(measured, rel=0.12 if kind == "relu6" else 0.02)


def test_expected_error_by_hand() -> None:
    # Uniform on 0..1 in four bins, grid 0, 1/3, 2/3, 1: the error is (1/3)^2 / 12.
    histogram = ExactHistogram(torch.device("cpu"))
    histogram.exponent, histogram.counts = -2, torch.ones(4, dtype=torch.float64)
    grids = qparams_from_range(torch.zeros(2), torch.tensor([1.0, 0.5]), bits=2, axis=0)
    errors = expected_error(histogram, grids)
    assert errors[0].item() == pytest.approx(1 / 108, rel=1e-6)
    # Clipped at 0.5: half the mass on a grid of 1/6, half pays the integral of (x - 0.5)^2.
    assert errors[1].item() == pytest.approx(1 / 432 / 2 + 0.5**3 / 3, rel=1e-6)


def test_thinned_batches_keep_channels_extremes_and_the_optimum() -> None:
    x = samples("relu", 2**16).view(16, 64, 64)
    x[3, 5, 7] = 30.0
    x = x * torch.linspace(0.5, 2, 64)
    errors = []
    for sample in (None, 5_000):
        observer = make_observer("mse", sample=sample)
        observer(x)
        assert observer.histogram.counts.sum() + observer.histogram.zeros == pytest.approx(
            x.numel(), rel=2e-3
        )
        assert observer.histogram.counts.flatten()[-1] >= 1
        errors.append(mse(x, fake_quantize(x, observer.qparams())))
    assert errors[1] < 1.005 * errors[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("size", [1, 31, 32, 33, 5000])
def test_tails_are_all_beyond_half_of_the_extremes(size: int, signed: bool, dtype: torch.dtype) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    x = x if signed else x.abs()
    low, high = (end.float() for end in torch.aminmax(x))
    wanted = [v for v in x.float().tolist() if v > float(high) / 2 or (float(low) < 0 and v < float(low) / 2)]
    assert sorted(tails(x, low, high).tolist()) == sorted(wanted)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_thinning_does_not_guess_at_tails(signed: bool, bits: int) -> None:
    # A few hundred values of this tensor decide where its range ends; every 13th of them would not do.
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2**16, generator=g) / torch.rand(2**16, generator=g).pow(0.3)
    x = x if signed else x.abs()
    errors = []
    for sample in (None, 5_000):
        observer = make_observer("mse", sample=sample, bits=bits)
        for part in x.split(2**14):
            observer(part)
        errors.append(mse(x, fake_quantize(x, observer.qparams())))
    assert errors[1] < 1.01 * errors[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_never_worse_than_min_max_or_torch(kind: str, bits: int) -> None:
    x = samples(kind)
    for scheme in SCHEMES[:2]:
        errors = []
        for name in ("mse", "minmax", "histogram"):
            observer = make_observer(name, bits=bits, **scheme)
            for part in x.split(25_000):
                observer(part)
            errors.append(mse(x, fake_quantize(x, observer.qparams())))
        # relu6 has an atom at 6, which a bin smears over its width.
        slack = 1.002 if kind == "relu6" else 1.0005
        assert errors[0] <= errors[1] * slack and errors[0] <= errors[2] * slack


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_search_finds_the_optimum_of_a_dense_grid(kind: str, bits: int) -> None:
    x = samples(kind, 8_000)
    observer = make_observer("mse", bits=bits)
    observer(x)
    chosen = mse(x, fake_quantize(x, observer.qparams()))
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    shares = [i / 40 for i in range(1, 41)]
    pairs = (
        [(a, b) for a in shares[3::4] for b in shares[3::4]] if low < 0 < high else [(s, s) for s in shares]
    )
    for a, b in pairs:
        grid = qparams_from_range(low * a, high * b, bits=bits)
        assert chosen <= mse(x, fake_quantize(x, grid)) * 1.01


@given(st.integers(0, 500), st.integers(2, 8), st.booleans())
@settings(max_examples=25, deadline=None)
def test_per_channel_search_is_never_worse_than_min_max(seed: int, bits: int, symmetric: bool) -> None:
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed)) ** 3
    errors = []
    for name in ("mse", "minmax"):
        observer = make_observer(name, bits=bits, symmetric=symmetric, signed=symmetric, axis=0)
        observer(x)
        errors.append((fake_quantize(x, observer.qparams()) - x).square().sum(1))
    assert (errors[0] <= errors[1]).all()


def test_per_channel_search_tries_every_ratio() -> None:
    x = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    observer = make_observer("mse", bits=3, symmetric=True, signed=True, axis=0)
    observer(x)
    got = (fake_quantize(x, observer.qparams()) - x).square().sum(1)
    for c in range(6):
        top = x[c].abs().max()
        grids = [
            qparams_from_range(-top * r, top * r, bits=3, symmetric=True, signed=True)
            for r in (torch.arange(1, 101) / 100)
        ]
        assert (
            float(got[c])
            <= min(float((fake_quantize(x[c], g) - x[c]).square().sum()) for g in grids) * 1.0001
        )


@given(st.integers(0, 200), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_histogram_counts_do_not_depend_on_batches(seed: int, pieces: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2_000, generator=g) * torch.linspace(0.01, 5, 2_000)
    one, many = ExactHistogram(x.device), ExactHistogram(x.device)
    one.add(x, x.min().item(), x.max().item())
    for i, part in enumerate(x.chunk(pieces)):
        seen = torch.cat(x.chunk(pieces)[: i + 1])
        many.add(part, seen.min().item(), seen.max().item())
    assert (one.exponent, one.first, one.zeros) == (many.exponent, many.first, many.zeros)
    # histc rounds in float32: a value on an edge may land on either side of it.
    assert (one.counts - many.counts).abs().sum() <= 4 and one.counts.sum() == many.counts.sum() == 2_000
    edges = (torch.arange(one.counts.numel() + 1) + one.first).double() * one.width
    want = torch.histogram(x.double(), bins=edges).hist
    assert (one.counts - want).abs().sum() <= 4


def test_histogram_fills_more_than_half_its_bins_and_counts_zeros_apart() -> None:
    for top in (1e-5, 0.7, 1.0, 3.3e38):
        x = torch.rand(10_000, generator=torch.Generator().manual_seed(1)) * top
        x[::2] = 0
        histogram = ExactHistogram(x.device)
        histogram.add(x, 0.0, x.max().item())
        assert 2048 <= histogram.counts.numel() <= 4096
        assert histogram.zeros == int((x == 0).sum()) and histogram.counts.sum() + histogram.zeros == 10_000


def test_per_channel_search_moves_each_end_alone() -> None:
    """One value far below: clipping it must not cost the values above."""
    x = torch.cat([torch.linspace(-0.1, 1, 400), torch.tensor([-4.0])])
    observer = make_observer("mse", bits=3, axis=0)
    observer(x[None])
    low, high = (float(end) for end in observer.range())
    shares = [i / 50 for i in range(1, 51)]
    errors = {
        (a, b): mse(x, fake_quantize(x, qparams_from_range(torch.tensor(-4 * a), torch.tensor(b), bits=3)))
        for a in shares for b in shares
    }  # fmt: skip
    best, together = min(errors.values()), min(errors[share, share] for share in shares)
    assert mse(x, fake_quantize(x[None], observer.qparams())[0]) <= 1.02 * best < 0.9 * together
    assert low > -2.5 and high > 0.9

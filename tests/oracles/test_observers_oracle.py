"""Observers against torch.ao's observers and ONNX Runtime's calibrators: equal ranges and grids."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quantlib.quantization.observers import make_observer

pytestmark = pytest.mark.filterwarnings("ignore")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ao: Any = pytest.importorskip("torch.ao.quantization.observer")

AFFINE, SYMMETRIC = torch.per_tensor_affine, torch.per_tensor_symmetric
GRIDS = {  # ours -> torch's
    "uint8 affine": (dict(), dict(dtype=torch.quint8, qscheme=AFFINE)),
    "int8 symmetric": (dict(signed=True, symmetric=True), dict(dtype=torch.qint8, qscheme=SYMMETRIC)),
    "int8 affine": (dict(signed=True), dict(dtype=torch.qint8, qscheme=AFFINE)),
    "uint8 symmetric": (dict(symmetric=True), dict(dtype=torch.quint8, qscheme=SYMMETRIC)),
    "int8 narrow": (
        dict(signed=True, symmetric=True, narrow_range=True),
        dict(dtype=torch.qint8, qscheme=SYMMETRIC, quant_min=-127, quant_max=127),
    ),
    "uint4 affine": (dict(bits=4), dict(dtype=torch.quint8, qscheme=AFFINE, quant_min=0, quant_max=15)),
    "int3 symmetric": (
        dict(bits=3, signed=True, symmetric=True),
        dict(dtype=torch.qint8, qscheme=SYMMETRIC, quant_min=-4, quant_max=3),
    ),
}


def batches(kind: str) -> list[Tensor]:
    """Three batches of (8, 16, 5, 5), the kind of data named."""
    g = torch.Generator().manual_seed(len(kind))
    normal = [torch.randn(8, 16, 5, 5, generator=g) for _ in range(3)]
    if kind == "growing":
        return [x * (1 + 3 * i) + i for i, x in enumerate(normal)]
    if kind == "outlier":
        normal[1].view(-1)[7] = 400.0
        return normal
    if kind == "channels_last":
        return [x.to(memory_format=torch.channels_last) for x in normal]
    if kind == "constant, then data":
        return [torch.full_like(normal[0], 2.7), normal[1], normal[2] * 2]
    if kind == "empty channels":
        return [x * (torch.arange(16) % 4 > 0).view(1, 16, 1, 1) for x in normal]
    change = {
        "normal": lambda x: x,
        "relu": torch.relu,
        "laplace": lambda x: x * x.abs(),
        "positive": lambda x: x.abs() + 3,
        "negative": lambda x: -x.abs() - 3,
        "zero": torch.zeros_like,
        "constant": lambda x: torch.full_like(x, 2.5),
        # Few distinct values: torch's walk visits each of them once its error model overflows to NaN.
        "denormal": lambda x: (4 * x).round() * 1e-40,
        "tiny": lambda x: x * 1e-12,
        "huge": lambda x: (4 * x).round() * 1e30,
    }[kind]
    return [change(x) for x in normal]


KINDS = [
    *("normal", "relu", "laplace", "positive", "negative", "zero", "constant", "denormal", "tiny", "huge"),
    *("growing", "outlier", "channels_last", "constant, then data", "empty channels"),
]


def same_grid(ours: Any, theirs: Any) -> None:
    scale, zero_point = theirs.calculate_qparams()
    q = ours.qparams()
    assert torch.equal(q.scale.reshape(-1), scale.reshape(-1).float())
    assert torch.equal(q.zero_point.reshape(-1), zero_point.reshape(-1).int())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_per_tensor_extremes(grid: str, kind: str) -> None:
    mine, theirs = GRIDS[grid]
    pairs = [
        (make_observer("minmax", **mine), ao.MinMaxObserver(**theirs)),
        (make_observer("moving_average", **mine), ao.MovingAverageMinMaxObserver(**theirs)),
        (make_observer("recording", **mine), ao.MinMaxObserver(**theirs)),
    ]
    for ours, oracle in pairs:
        for x in batches(kind):
            ours(x)
            oracle(x)
        assert torch.equal(ours.range()[0], oracle.min_val) and torch.equal(ours.range()[1], oracle.max_val)
        same_grid(ours, oracle)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_per_channel_extremes(grid: str, kind: str, axis: int) -> None:
    mine, theirs = GRIDS[grid]
    scheme = torch.per_channel_symmetric if mine.get("symmetric") else torch.per_channel_affine
    theirs = {**theirs, "qscheme": scheme, "ch_axis": axis}
    for name, oracle in (
        ("minmax", ao.PerChannelMinMaxObserver(**theirs)),
        ("moving_average", ao.MovingAveragePerChannelMinMaxObserver(**theirs)),
    ):
        ours = make_observer(name, axis=axis, **mine)
        for x in batches(kind):
            ours(x)
            oracle(x)
        assert torch.equal(ours.range()[0], oracle.min_val) and torch.equal(ours.range()[1], oracle.max_val)
        same_grid(ours, oracle)


@pytest.mark.parametrize("kind", KINDS)
def test_histogram_bins_and_range(kind: str) -> None:
    for mine, theirs in (GRIDS["uint8 affine"], GRIDS["int8 symmetric"]):
        ours, oracle = make_observer("histogram", **mine), ao.HistogramObserver(**theirs)
        for x in batches(kind):
            ours(x)
            oracle(x)
            assert torch.equal(ours.histogram, oracle.histogram)
        low, high = oracle._non_linear_param_search()
        assert torch.equal(ours.range()[0], low) and torch.equal(ours.range()[1], high)
        same_grid(ours, oracle)


@pytest.mark.parametrize("seed", range(8))
def test_histogram_random_growth(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    ours, oracle = make_observer("histogram"), ao.HistogramObserver()
    for _ in range(4):
        x = torch.randn(3000, generator=g) * torch.rand(1, generator=g) * 4 + torch.randn(1, generator=g)
        x = x.relu() if seed % 2 else x
        ours(x)
        oracle(x)
    assert torch.equal(ours.histogram, oracle.histogram)
    same_grid(ours, oracle)


def collect(method: str, data: list[Tensor], **settings: Any) -> tuple[float, float]:
    """ONNX Runtime's (low, high) for the batches, zero included as its `compute_scale_zp` does."""
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    options = dict(symmetric=False, num_bins=2048, num_quantized_bins=128, percentile=99.99, scenario="same")
    collector = calibrate.HistogramCollector(method, **{**options, **settings})
    with contextlib.redirect_stdout(io.StringIO()):
        for x in data:
            collector.collect({"x": x.numpy()})
        low, high = collector.compute_collection_result()["x"][:2]
    return min(float(low), 0.0), max(float(high), 0.0)


# Where ONNX Runtime itself fails: numpy has no 2,048 finite bins between denormals.
ORT_KINDS = [kind for kind in KINDS if kind not in ("denormal",)]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("percentile", [99.0, 99.99, 100.0])
@pytest.mark.parametrize("kind", ORT_KINDS)
def test_percentile(kind: str, percentile: float, symmetric: bool) -> None:
    ours = make_observer("percentile", percentile=percentile, symmetric=symmetric, signed=symmetric)
    for x in batches(kind):
        ours(x)
    expected = collect("percentile", batches(kind), percentile=percentile, symmetric=symmetric)
    assert (ours.range()[0].item(), ours.range()[1].item()) == expected


@pytest.mark.parametrize("bins, levels", [(128, 128), (512, 128), (511, 64)])
@pytest.mark.parametrize("kind", [kind for kind in ORT_KINDS if kind not in ("outlier", "growing")])
def test_entropy(kind: str, bins: int, levels: int) -> None:
    ours = make_observer("entropy", bins=bins, levels=levels)
    for x in batches(kind):
        ours(x)
    expected = collect("entropy", batches(kind), num_bins=bins, num_quantized_bins=levels)
    assert (ours.range()[0].item(), ours.range()[1].item()) == expected


def test_entropy_default_size() -> None:
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(1)).relu()
    ours = make_observer("entropy")
    ours(x)
    assert (ours.range()[0].item(), ours.range()[1].item()) == collect("entropy", [x])
    assert np.isfinite(ours.divergences()).all()

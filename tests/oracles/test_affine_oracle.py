"""The affine grid against torch's kernels: integers, values, gradients and grids, bit for bit."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from quantlib.quantization.affine import (
    QParams,
    fake_quantize,
    fake_quantize_by_formula,
    qparams_from_range,
    quant_range,
    quantize,
)
from quantlib.quantization.metrics import sqnr_db

pytestmark = pytest.mark.filterwarnings("ignore")


def tensors() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(16, 4_000, generator=g)
    outlier = x.clone()
    outlier[3, 5] = 400.0
    return {
        "normal": x,
        "relu": x.relu(),
        "outlier": outlier,
        "constant": torch.full((16, 9), 0.3),
        "zero": torch.zeros(16, 9),
        "denormal": x[:, :99] * 1e-40,
        "tiny": x[:, :99] * 1e-9,
        "huge": x[:, :99] * 1e30,
        "empty channels": x[:, :99] * (torch.arange(16) % 3 > 0)[:, None],
        "ties": torch.arange(-200, 200).repeat(16, 1) / 2,
        "minus zero": torch.full((16, 3), -0.0),
    }


GRIDS = [
    (8, False, False),
    (8, True, True),
    (8, True, False),
    (4, False, False),
    (3, True, True),
    (2, True, True),
]


@pytest.mark.parametrize("bits, signed, symmetric", GRIDS)
@pytest.mark.parametrize("name", tensors())
def test_fake_quantize_and_its_gradient(name: str, bits: int, signed: bool, symmetric: bool) -> None:
    x = tensors()[name]
    for axis in (None, 0):
        low, high = torch.aminmax(x) if axis is None else torch.aminmax(x, dim=1)
        # A third of the range is clipped, so that the mask has something to say.
        grid = qparams_from_range(
            low / 1.5, high / 1.5, bits=bits, signed=signed, symmetric=symmetric, axis=axis
        )
        leaf = x.clone().requires_grad_()
        kernel = (
            torch.fake_quantize_per_tensor_affine(
                leaf, float(grid.scale), int(grid.zero_point), grid.quant_min, grid.quant_max
            )
            if axis is None
            else torch.fake_quantize_per_channel_affine(
                leaf, grid.scale, grid.zero_point, 0, grid.quant_min, grid.quant_max
            )
        )
        kernel.sum().backward()
        mine = x.clone().requires_grad_()
        fake_quantize(mine, grid).sum().backward()
        assert torch.equal(fake_quantize_by_formula(x, grid), kernel)
        assert torch.equal(fake_quantize(x, grid), kernel)
        scale, zero_point = grid.along(x)
        raw = torch.round(x * (1 / scale)) + zero_point
        mask = (raw >= grid.quant_min) & (raw <= grid.quant_max)
        assert torch.equal(leaf.grad, mask.float()) and torch.equal(mine.grad, leaf.grad)


def test_integers_equal_quantize_per_tensor_and_channel() -> None:
    x = tensors()["normal"]
    for signed, dtype in ((False, torch.quint8), (True, torch.qint8)):
        one = qparams_from_range(x.min(), x.max(), signed=signed)
        theirs = torch.quantize_per_tensor(x, float(one.scale), int(one.zero_point), dtype)
        assert torch.equal(quantize(x, one), theirs.int_repr())
        many = qparams_from_range(x.amin(1), x.amax(1), signed=signed, axis=0)
        theirs = torch.quantize_per_channel(x, many.scale, many.zero_point, 0, dtype)
        assert torch.equal(quantize(x, many), theirs.int_repr())


def test_random_scales() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(50_000, generator=g) * 3
    for _ in range(8):
        scale, zero_point = torch.rand((), generator=g) / 10, torch.randint(0, 256, (), generator=g)
        grid = QParams(scale, zero_point, 0, 255)
        theirs = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), 0, 255)
        assert torch.equal(fake_quantize_by_formula(x, grid), theirs)


@pytest.mark.parametrize("bits, signed, symmetric", GRIDS)
def test_grid_of_15_000_ranges(bits: int, signed: bool, symmetric: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ao: Any = pytest.importorskip("torch.ao.quantization.observer")
    g = torch.Generator().manual_seed(2)
    a, b = (
        torch.randn(15_000, generator=g) * 10 ** torch.randint(-8, 9, (15_000,), generator=g) for _ in "ab"
    )
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    quant_min, quant_max = quant_range(bits, signed)
    oracle = ao.PerChannelMinMaxObserver(
        dtype=torch.qint8 if signed else torch.quint8,
        qscheme=torch.per_channel_symmetric if symmetric else torch.per_channel_affine,
        **({} if bits == 8 else dict(quant_min=quant_min, quant_max=quant_max)),
    )
    scale, zero_point = oracle._calculate_qparams(low, high)
    grid = qparams_from_range(low, high, bits=bits, signed=signed, symmetric=symmetric, axis=0)
    assert torch.equal(grid.scale, scale) and torch.equal(grid.zero_point, zero_point.int())


def test_sqnr() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compute_sqnr = pytest.importorskip("torch.ao.ns.fx.utils").compute_sqnr
    x = tensors()["normal"]
    y = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) / 100
    # Ours sums in float64, the oracle in float32 (it answers None to float64).
    assert sqnr_db(x, y) == pytest.approx(float(compute_sqnr(x, y)), abs=1e-4)

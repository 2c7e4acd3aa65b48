"""Balanced rounding against every rounding there is, and through the verbs to the integer network."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.errors import ConfigError
from quantlib.quantization.affine import QParams, fake_quantize
from quantlib.quantization.graph import fuse
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.reconstruction import (
    LowBitNetwork,
    Recipe,
    balanced,
    correct_bias,
    flip,
    reconstruct,
    round_weights,
)
from quantlib.quantization.reconstruction.passes import error
from quantlib.quantization.reconstruction.units import blocks
from quantlib.quantization.workflow import calibrate, convert, prepare
from tests.quantization.networks import Tiny, randomize

FEW = Scheme(bits=3, symmetric=True, per_channel=True, observer="mse")
LOW, HIGH = torch.tensor(-4.0), torch.tensor(3.0)


def grid(scale, bits=3):
    scale = torch.as_tensor(scale)
    axis = 0 if scale.dim() else None
    return QParams(scale, torch.zeros_like(scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, axis)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-3, 2, width=32), min_size=1, max_size=6))
def test_no_rounding_with_a_balanced_sum_has_less_squared_error(values):
    levels = torch.tensor(values)
    found = flip(levels, levels.round(), LOW, HIGH)
    assert (found - levels).abs().max() < 1 + 1e-6
    assert abs(float((found - levels).sum())) <= 0.5 + 1e-5
    ways = [np.array(way) for way in product(*({np.floor(v), np.ceil(v)} for v in values))]
    sums = [way for way in ways if abs((way - np.array(values)).sum()) <= 0.5 + 1e-5]
    least = min(float(np.square(way - np.array(values)).sum()) for way in sums)
    assert float((found - levels).square().sum()) == pytest.approx(least, abs=1e-4)


def test_kernels_first_then_channels_and_the_gain_is_kept():
    torch.manual_seed(0)
    weight = torch.randn(8, 16, 3, 3)
    scales = torch.full((8,), 0.5)
    rounded, new = balanced(weight, grid(scales))
    integers = rounded / new.scale.view(-1, 1, 1, 1)
    assert torch.equal(integers, integers.round().clamp(-4, 3))
    plain = (weight / 0.5).round().clamp(-4, 3)
    changed = (integers - plain).abs()
    assert changed.max() == 1 and 0.01 < changed.mean() < 0.4
    sums = (integers - weight / 0.5).sum((1, 2, 3))
    assert sums.abs().max() <= 0.5 + 1e-4 < (plain - weight / 0.5).sum((1, 2, 3)).abs().max()
    kernels = (integers - weight / 0.5).sum((2, 3)).abs()
    assert kernels.mean() < 0.5 < (plain - weight / 0.5).sum((2, 3)).abs().mean()
    kept = (weight * rounded).sum((1, 2, 3)) / weight.square().sum((1, 2, 3))
    assert torch.allclose(kept, torch.ones(8), atol=1e-5)
    assert (new.scale > scales).float().mean() > 0.5  # what was clipped is given back


def test_every_shape_has_a_rounding_and_zeros_stay_zeros():
    torch.manual_seed(0)
    linear, new = balanced(torch.randn(4, 20), grid(torch.full((4,), 0.4)))
    assert linear.shape == (4, 20) and new.scale.shape == (4,)
    whole, new = balanced(torch.randn(4, 2, 1, 1), grid(0.4))
    assert whole.shape == (4, 2, 1, 1) and new.scale.shape == ()
    dead, new = balanced(torch.zeros(3, 2, 3, 3), grid(torch.full((3,), 1e-7)))
    assert not dead.any() and torch.equal(new.scale, torch.full((3,), 1e-7))


@pytest.fixture
def prepared():
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    made = calibrate(prepare(randomize(Tiny()), QConfig(FEW, Scheme(bits=5, observer="mse"))), [x])
    return made, x


def test_balanced_weights_go_through_every_kind(prepared):
    made, x = prepared
    found = round_weights(made)
    for name, observer in made.weights.items():
        weight = made.graph_module.get_submodule(name).weight.detach()
        wanted, new = balanced(weight, observer.qparams())
        layer = found.graph_module.get_submodule(name).weight.detach()
        assert torch.equal(layer, wanted) and torch.equal(found.weights[name].qparams().scale, new.scale)
        assert torch.allclose(fake_quantize(layer, new), layer, rtol=1e-6)  # it lies on its grid
        assert not torch.allclose(layer, fake_quantize(weight, observer.qparams()))
    with torch.no_grad():
        outputs = [convert(found, kind)(x) for kind in ("simulated", "mixed", "integer")]
    assert all(torch.nn.functional.cosine_similarity(outputs[0], y).min() > 0.98 for y in outputs[1:])
    plain = round_weights(made, "nearest")
    assert torch.equal(convert(plain)(x), convert(made)(x))
    with pytest.raises(ConfigError, match="no rounding named 'balance'; did you mean 'balanced'"):
        round_weights(made, "balance")


def test_learning_and_bias_correction_begin_from_it(prepared):
    made, x = prepared
    start = LowBitNetwork(made, "mixed", "balanced")
    first = blocks(made.graph)[0]
    with torch.no_grad():
        wanted = start.run(first, x, low_bit=False)
        expected = error(start, first, x.half(), wanted.half())
    found = reconstruct(made, [x], Recipe(start="balanced", iterations=2, batch_size=8))
    assert found.reports[0].error_before == pytest.approx(expected, rel=1e-2)
    corrected = correct_bias(made, [x], rounding="balanced").graph_module
    assert torch.equal(corrected.conv1.weight, round_weights(made).graph_module.conv1.weight)
    assert not torch.equal(corrected.conv1.bias, fuse(made.graph_module).conv1.bias)

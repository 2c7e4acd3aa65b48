"""The int8 kernels against exact integers, and the mixed network against fake quantization by hand."""

import pytest
import torch
from torch.nn import functional as F

from quantlib.quantization.mixed import MixedConv2d, MixedLinear
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.subject.models import build
from tests.quantization.networks import AtInputs, Spellings, Tiny, randomize

pytestmark = pytest.mark.oracle
MINMAX = QConfig(activation=Scheme(observer="minmax"))


def exact(layer, q, total):
    """float64 holds every int32 sum exactly; then one scale per channel, bias, residual, ReLU."""
    centred, weight = q.double() - layer.input_grid[1], layer.weight.double()
    if isinstance(layer, MixedConv2d):
        sums, shape = F.conv2d(centred, weight, None, *layer.geometry), (-1, 1, 1)
    else:
        sums, shape = F.linear(centred, weight), (-1,)
    assert sums.abs().max() < 2**31 and torch.equal(sums, sums.round())
    scale = (torch.tensor(layer.input_grid[0]) * layer.weight_scale).double().reshape(shape)
    out = sums * scale + (0 if layer.bias is None else layer.bias.double().reshape(shape))
    out = out + (0 if total is None else total.double())
    out = out.relu() if layer.relu else out
    size = (sums * scale).abs().max() + out.abs().max()
    return (out if layer.ceiling is None else out.clamp(max=layer.ceiling)), size


def compare_every_layer(mixed, x):
    seen = []

    def before(layer, inputs):
        total = inputs[1].clone() if len(inputs) > 1 else None
        layer.expected = exact(layer, inputs[0], total)

    def after(layer, inputs, output):
        wanted, size = layer.expected
        seen.append(((output.double() - wanted).abs().max() / size).item())

    for module in mixed.modules():
        if isinstance(module, (MixedConv2d, MixedLinear)):
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)
    mixed(x)
    return seen


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("network", [Tiny, Spellings, lambda: build("resnet20"), lambda: build("squeezenet")])
@torch.no_grad()
def test_small_networks(network, symmetric):
    torch.manual_seed(0)
    config = QConfig(activation=Scheme(symmetric=symmetric, observer="minmax"))
    x = torch.randn(16, 3, 16, 16)
    prepared = calibrate(prepare(randomize(network()), config), [x])
    mixed = convert(prepared, "mixed")
    errors = compare_every_layer(mixed, x)
    assert len(errors) == len(prepared.weights) and max(errors) < 1e-6
    wanted = AtInputs(prepared).run(x)
    # Float32 rounding moves a few values across a rounding boundary; the steps are 8 bits wide.
    assert (mixed(x) - wanted).abs().max() < 0.02 * wanted.abs().max()
    assert (mixed(x) - wanted).abs().mean() < 0.002 * wanted.abs().max()


@torch.no_grad()
def test_resnet50():
    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    prepared = calibrate(prepare(randomize(build("resnet50")), MINMAX), [x])
    mixed = convert(prepared, "mixed")
    errors = compare_every_layer(mixed, x)
    assert len(errors) == 54 and max(errors) < 1e-6
    wanted, got = AtInputs(prepared).run(x), mixed(x)
    assert (got - wanted).abs().max() < 0.03 * wanted.abs().max()
    assert torch.equal(got.argmax(1), wanted.argmax(1))

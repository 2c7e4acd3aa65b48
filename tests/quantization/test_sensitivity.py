from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantlib.errors import ConfigError, NotCalibratedError, UnsupportedOperatorError
from quantlib.quantization import sensitivity
from quantlib.quantization.graph import fuse
from quantlib.quantization.hessian import hessian_traces
from quantlib.quantization.integer_graph import record
from quantlib.quantization.metrics import sqnr_db
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.sensitivity import layer_sensitivity
from quantlib.quantization.simulated import to_simulated
from quantlib.quantization.workflow import calibrate, prepare
from quantlib.subject import data
from quantlib.subject.data import batches
from tests.quantization.networks import Spellings, Tiny, randomize

THREE = Scheme(bits=3, symmetric=True, per_channel=True, narrow_range=True)


@pytest.fixture(scope="module")
def images():
    return data.load("test").take(20)


def of_classes(images, count):
    """The images, labelled as if there were only that many classes."""
    return replace(images, labels=images.labels % count)


def small(network):
    """Tiny takes any size; Spellings ends in a linear layer for 16 x 16, hence the pooling before it."""
    torch.manual_seed(0)
    made = randomize(network())
    return made if network is Tiny else nn.Sequential(nn.AvgPool2d(2), made).eval()


@pytest.mark.parametrize("network", [Tiny, Spellings])
def test_equal_to_a_whole_network_with_that_one_layer_quantized(network, images):
    model, images = small(network), of_classes(images, 5)
    names = list(prepare(model, QConfig(THREE, None)).weights)
    found = layer_sensitivity(prepare(model, QConfig(THREE, None)), images, batch_size=8)
    assert [row.layer for row in found.layers] == names and len(names) >= 4
    x = torch.cat([x for x, _ in batches(images)])
    with torch.no_grad():
        exact = fuse(model)(x)
        assert np.array_equal(found.float32.predictions, exact.argmax(1).numpy())
        for row in found.layers:
            alone = prepare(model, QConfig(None, None, by_name={row.layer: QConfig(THREE, None)}))
            logits = to_simulated(alone)(x)
            assert np.array_equal(row.evaluation.predictions, logits.argmax(1).numpy())
            rise = F.cross_entropy(logits, images.labels) - F.cross_entropy(exact, images.labels)
            assert row.loss_rise == pytest.approx(float(rise), abs=1e-5)
            weight, grid = fuse(model).get_submodule(row.layer).weight, alone.weights[row.layer].qparams()
            rounded = torch.fake_quantize_per_channel_affine(weight, grid.scale, grid.zero_point, 0, -3, 3)
            assert row.sqnr_db == pytest.approx(sqnr_db(weight, rounded), abs=1e-6)
            outputs = [record(each, x)[row.layer] for each in (fuse(model), to_simulated(alone))]
            assert row.output_sqnr_db == pytest.approx(sqnr_db(*outputs), abs=1e-4)
            assert row.noise == pytest.approx(float((weight - rounded).square().sum()), rel=1e-5)
            assert (row.bits, row.values, row.part) == (3, weight.numel(), "weight")


def test_activations(images):
    model = small(Tiny)
    config = QConfig(None, Scheme(bits=2))
    prepared = calibrate(prepare(model, config), batches(images))
    found = layer_sensitivity(prepared, images, part="activation", batch_size=8)
    assert [row.layer for row in found.layers] == list(prepared.activations)
    x, graph = torch.cat([x for x, _ in batches(images)]), fuse(model)
    for row in found.layers:
        grid = prepared.qparams(row.layer)

        def rounded(y, grid=grid):
            return torch.fake_quantize_per_tensor_affine(y, grid.scale, grid.zero_point, 0, 3)

        with torch.no_grad():
            if row.layer == "input":
                logits = graph(rounded(x))
            else:
                layer = graph.get_submodule(row.layer)
                hook = layer.register_forward_hook(lambda module, inputs, output: rounded(output))  # noqa: B023
                logits = graph(x)
                hook.remove()
            rise = F.cross_entropy(logits, images.labels) - F.cross_entropy(graph(x), images.labels)
        assert row.loss_rise == pytest.approx(float(rise), abs=1e-5) and rise != 0
        assert row.sqnr_db == row.output_sqnr_db > 0
    assert found.layers[0].layer == "input" and found.layers[0].values == 3 * 32 * 32


def test_only_the_rest_of_the_network_runs_again(images, monkeypatch):
    counted, run_node = [], torch.fx.Interpreter.run_node
    monkeypatch.setattr(
        sensitivity.fx.Interpreter, "run_node", lambda self, n: (counted.append(n.name), run_node(self, n))[1]
    )
    prepared = prepare(small(Tiny), QConfig(THREE, None))
    layer_sensitivity(prepared, images)
    order = [node for node in prepared.graph.nodes if node.op == "call_module"]
    for place, node in enumerate(order):
        before = sum(str(other.target) in prepared.weights for other in order[:place])
        assert counted.count(node.name) == 1 + before


def test_mistakes(images):
    prepared = prepare(small(Tiny), QConfig(None, Scheme(bits=2)))
    with pytest.raises(ConfigError, match="no part named 'bias'"):
        layer_sensitivity(prepared, images, part="bias")
    with pytest.raises(ConfigError, match="No layer .* Scheme for its weight"):
        layer_sensitivity(prepared, images)
    with pytest.raises(NotCalibratedError, match="input"):
        layer_sensitivity(prepared, images, part="activation")

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.flatten(self.conv(x).sigmoid_().mean((2, 3)), 1)

    odd = prepare(InPlace().eval(), QConfig(THREE, None), unsupported="float")
    with pytest.raises(UnsupportedOperatorError, match="in place"):
        layer_sensitivity(odd, of_classes(images, 4))


class Few(nn.Module):
    """Few enough weights for the whole Hessian: 54 + 12."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.fc = nn.Linear(2, 6)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


def exact_traces(model, x, labels):
    """Traces of torch's own Hessian, one layer at a time."""
    graph = fuse(model)
    found = {}
    for name in ("conv", "fc"):
        weight = graph.get_submodule(name).weight

        def loss(values, name=name, shape=weight.shape):
            logits = torch.func.functional_call(graph, {f"{name}.weight": values.view(shape)}, (x,))
            return F.cross_entropy(logits, labels)

        hessian = torch.autograd.functional.hessian(loss, weight.detach().flatten())
        found[name] = float(hessian.trace())
    return found


def test_hutchinson_against_the_exact_hessian():
    torch.manual_seed(3)
    model, x, labels = Few().eval(), 2 * torch.randn(40, 3, 8, 8), torch.randint(0, 6, (40,))
    with torch.no_grad():
        model.conv.weight.mul_(3)
        model.fc.weight.mul_(4)
    exact = exact_traces(model, x, labels)
    found = hessian_traces(model, [(x, labels)], samples=600)
    for name, trace in found.items():
        assert abs(trace.value - exact[name]) < 4 * trace.error, name
        assert trace.error < 0.1 * abs(exact[name])
    assert {name: trace.weights for name, trace in found.items()} == {"conv": 54, "fc": 12}
    halves = [(x[:20], labels[:20]), (x[20:], labels[20:])]  # equal batches: the mean of their losses
    for name, trace in hessian_traces(model, halves, samples=600, seed=1).items():
        assert abs(trace.value - exact[name]) < 4 * trace.error, name
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ConfigError, match="two draws"):
        hessian_traces(model, [(x, labels)], samples=1)


def test_whoever_wants_no_gradients_gets_traces():
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(3, 2)).eval(), (torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    with torch.no_grad():
        inside = hessian_traces(model, [batch])
    assert inside == hessian_traces(model, [batch])

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantlib.errors import ConfigError
from quantlib.quantization.affine import fake_quantize, qparams_from_range
from quantlib.quantization.equalization import equalize, equalizing_factors, links, unbalance
from quantlib.quantization.graph import fuse
from quantlib.subject.models import build
from tests.quantization.networks import Spellings, Tiny, randomize


class Chain(nn.Module):
    """Four links: plain, through a pooling, into a depthwise and out of it; ReLU6 and reuse block others."""

    def __init__(self, middle=nn.ReLU):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, bias=False)
        self.c = nn.Conv2d(12, 12, 3, groups=12)
        self.d, self.e = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 4, 3, groups=2)
        self.middle = middle()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.b(F.max_pool2d(F.relu(self.a(x)), 2)))
        x = self.e(self.d(self.middle(self.c(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


def named(graph):
    return [(str(first.target), str(second.target)) for first, second in links(graph.graph)]


def test_links_are_what_a_relu_lets_through():
    assert named(fuse(Chain().eval())) == [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")]
    assert named(fuse(Chain(nn.ReLU6).eval())) == [("a", "b"), ("b", "c"), ("d", "e")]
    assert named(fuse(Chain(nn.Identity).eval())) == [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")]
    assert named(fuse(randomize(Tiny()))) == []  # every tensor has two readers or ends in an add
    assert named(fuse(Spellings().eval())) == []


def test_a_resnet_has_two_links_in_each_bottleneck():
    found = named(fuse(build("resnet50").eval()))
    assert len(found) == 32
    assert found[:2] == [("layer1.0.conv1", "layer1.0.conv2"), ("layer1.0.conv2", "layer1.0.conv3")]


def unlikeness(layer):
    """The widest channel that a layer makes over its narrowest that is not dead."""
    width = layer.weight.detach().flatten(1).abs().amax(1)
    return float(width.max() / width[width > 0].min())


@pytest.mark.parametrize("measure", ["magnitude", "span"])
def test_the_network_stays_and_its_channels_become_alike(measure):
    model, x = Chain().eval(), torch.randn(4, 3, 20, 20)
    graph = fuse(model)
    bad = unbalance(graph, spread=20)
    good = equalize(bad, measure)
    with torch.no_grad():
        wanted = model(x)
        assert torch.allclose(graph(x), wanted, atol=1e-5)
        assert torch.allclose(bad(x), wanted, atol=1e-5) and not torch.equal(bad.b.weight, graph.b.weight)
        assert torch.allclose(good(x), wanted, atol=1e-5)
    assert max(unlikeness(bad.get_submodule(str(first.target))) for first, _ in links(bad.graph)) > 10
    for first, second in links(good.graph):
        a, b = (good.get_submodule(str(node.target)) for node in (first, second))
        made = a.weight.flatten(1)
        parts = b.weight.reshape(b.groups, b.out_channels // b.groups, b.weight.shape[1], -1)
        read = torch.stack([parts[g, :, j].flatten() for g in range(b.groups) for j in range(parts.shape[2])])
        ranges = [rows.abs().amax(1) if measure == "magnitude" else rows.amax(1) - rows.amin(1)
                  for rows in (made, read)]  # fmt: skip
        assert torch.allclose(*ranges, rtol=1e-2)
    assert torch.equal(model.a.weight, graph.a.weight)  # neither changes what it was given


def test_what_the_grid_gains():
    """One step for channels that differ a hundredfold loses the small ones; equalized, it keeps them."""
    torch.manual_seed(1)
    graph = fuse(Chain().eval())

    def error(network):
        weight = network.b.weight.detach()
        grid = qparams_from_range(weight.min(), weight.max(), bits=6, signed=True, symmetric=True)
        return float((fake_quantize(weight, grid) - weight).square().sum() / weight.square().sum())

    bad = unbalance(graph, spread=10)
    assert error(equalize(bad)) < 0.5 * error(bad)


@pytest.mark.oracle
def test_equal_to_torch():
    torch_equalize = pytest.importorskip("torch.ao.quantization._equalize")
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 9, 3, bias=False), nn.Conv2d(9, 5, 1)).eval()
    theirs = torch_equalize.equalize(copy.deepcopy(model), [["0", "1"], ["1", "2"]], 1e-6)
    ours = equalize(model, "span", tolerance=1e-7, rounds=200)
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(tensor, ours.state_dict()[name], rtol=1e-4, atol=1e-7), name
    one_round = copy.deepcopy(model)
    torch_equalize.cross_layer_equalization(one_round[0], one_round[1])
    first = model[0].weight.flatten(1)
    second = model[1].weight.transpose(0, 1).flatten(1)
    s = equalizing_factors(*(rows.amax(1) - rows.amin(1) for rows in (first, second)))
    assert torch.allclose(one_round[0].weight.flatten(1), first / s[:, None], rtol=1e-5)


def test_by_hand_and_dead_channels():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([4.0, 0.25, 0.0]).view(3, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([2.0, 1.0, 3.0]))
        model[1].weight.copy_(torch.tensor([1.0, 1.0, 5.0]).view(1, 3, 1, 1))
    graph = equalize(model)
    first, second = graph.get_submodule("0"), graph.get_submodule("1")
    assert first.weight.flatten().tolist() == [2.0, 0.5, 0.0]
    assert first.bias.tolist() == [1.0, 2.0, 3.0]
    assert second.weight.flatten().tolist() == [2.0, 0.5, 5.0]
    assert unlikeness(model[0]) == 16.0 and unlikeness(first) == 4.0


def test_mistakes():
    with pytest.raises(ConfigError, match="no measure named 'spn'; did you mean 'span'"):
        equalize(Chain().eval(), "spn")
    for spread in (0.5, math.nan):
        with pytest.raises(ConfigError, match="1 or more"):
            unbalance(Chain().eval(), spread)


def test_a_layer_that_is_called_twice_is_left_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x).relu()).relu()

    model, x = Twice().eval(), torch.randn(2, 4, 8, 8)
    assert links(fuse(model).graph) == []
    assert torch.equal(equalize(model)(x), fuse(model)(x))


def test_a_linear_layer_that_reads_the_width_is_no_partner():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)

        def forward(self, x):
            return self.linear(torch.relu(self.conv(x)))

    torch.manual_seed(0)
    model, x = Wide().eval(), torch.randn(2, 3, 8, 8)
    assert not links(fuse(model).graph)
    torch.testing.assert_close(equalize(model)(x), model(x))


def test_channels_that_weight_decay_has_emptied_do_no_harm():
    assert torch.isfinite(equalizing_factors(torch.tensor([0.5]), torch.tensor([1e-40]))).all()

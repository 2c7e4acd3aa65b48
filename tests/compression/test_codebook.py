"""Looked-up weights against torch's own indexing and its gradients; training moves shared values only."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantlib.compression.codebook import (
    LookUp,
    attach,
    by_count,
    by_product,
    codebooks,
    detach,
    weights_of,
    with_weights,
)
from quantlib.compression.huffman import entropy_bits
from quantlib.compression.rate import importance, price_of_size, share_network
from quantlib.compression.sharing import Shared, share
from quantlib.errors import ConfigError


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(model[0].weight.shape) > 0.4)
    return model.eval()


def shares(model, clusters=4):
    return {name: share(weight, clusters) for name, weight in weights_of(model).items()}


IMAGES = torch.randn(7, 2, 4, 4, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def test_gradient_is_summed_by_cluster_as_torch_does_it():
    codebook = torch.randn(5, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 4, (3, 4, 2), dtype=torch.int32)  # nothing has the last value
    weights = torch.randn(3, 4, 2, dtype=torch.float64)
    ours = torch.autograd.grad((LookUp.apply(codebook, index) * weights).sum(), codebook)[0]
    theirs = torch.autograd.grad((codebook[index.long()] * weights).sum(), codebook)[0]
    assert torch.allclose(ours, theirs) and ours[4] == 0
    assert ours[1] == pytest.approx(weights[index == 1].sum().item())
    assert torch.autograd.gradcheck(lambda c: LookUp.apply(c, index).sin(), codebook)


@pytest.mark.parametrize("add", [by_count, by_product])
def test_both_ways_to_sum_by_cluster(add):
    values, index = torch.tensor([1.0, 2.0, 4.0, -8.0]), torch.tensor([2, 0, 2, 3], dtype=torch.int32)
    assert add(values, index, 5).tolist() == [2.0, 0.0, 5.0, -8.0, 0.0]
    assert add(values, index, 5).dtype == values.dtype


def test_a_step_by_hand():
    """Han's figure 3 in small: four weights, two values, gradients summed, one step of SGD."""
    layer = nn.Linear(2, 2, bias=False)
    shared = Shared(torch.tensor([1.0, -1.0]), torch.tensor([[0, 1], [1, 0]]))
    model = attach(nn.Sequential(layer), {"0": shared})
    gradient = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    (model[0].weight * gradient).sum().backward()
    values = model[0].parametrizations.weight.original
    assert torch.allclose(values.grad * 2**0.5, torch.tensor([0.5, 0.5]))  # 0.1 + 0.4 and 0.2 + 0.3
    with torch.no_grad():
        values -= 0.2 * values.grad
    # Each value has moved by 0.2 times the mean gradient of its two weights.
    assert torch.allclose(model[0].weight, torch.tensor([[0.95, -1.05], [-1.05, 0.95]]))


def test_attached_networks_compute_the_same_and_detach_gives_plain_weights():
    model = network()
    found = shares(model)
    plain, looked_up = with_weights(model, found), attach(model, found)
    assert torch.allclose(plain(IMAGES), looked_up(IMAGES), atol=1e-6)
    assert [name for name, _ in looked_up.named_parameters() if "original" in name] == [
        "0.parametrizations.weight.original", "4.parametrizations.weight.original",
    ]  # fmt: skip
    back = detach(looked_up)
    assert set(back.state_dict()) == set(model.state_dict())
    assert torch.equal(back(IMAGES), looked_up(IMAGES))
    assert not torch.equal(model[0].weight, back[0].weight), "the original is left alone"


def test_training_moves_few_values_lowers_the_loss_and_keeps_zeros():
    model = network()
    shared = attach(model, shares(model))
    optimizer = torch.optim.Adam(shared.parameters(), 0.02)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(shared(IMAGES), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    plain = detach(shared)
    assert losses[-1] < losses[0] - 0.1
    assert torch.equal(plain[0].weight == 0, model[0].weight == 0)
    assert len(plain[0].weight.unique()) <= 5 and len(plain[4].weight.unique()) <= 5
    for name, codebook in codebooks(shared).items():
        assert set(plain.get_submodule(name).weight.unique().tolist()) <= set(codebook.tolist())


def test_importance_is_the_fisher_information_over_the_size_of_the_weights():
    """One linear layer and a softmax: the expected squared gradient is known, p (1 - p) x^2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False))
    x = torch.randn(2000, 3)
    p = model(x).softmax(1).detach()
    fisher = ((p * (1 - p))[:, :, None] * x.square()[:, None]).mean(0).mean()
    batches = [(part, None) for part in x.split(20)]
    square = model[0].weight.detach().square().mean()
    for blend in (0.0, 0.5, 1.0):
        expected = float(fisher**blend / square ** (1 - blend))
        assert importance(model, batches, blend)["0"] == pytest.approx(expected, rel=0.15 * blend + 1e-6)
    with pytest.raises(ConfigError, match="at least one image"):
        importance(model, [])


def test_one_price_serves_all_layers():
    model = network()
    cheap, dear = (share_network(model, {"0": 1.0, "4": 100.0}, price, 8) for price in (1e-5, 1e-2))
    for name in ("0", "4"):
        assert int((dear[name].index == 0).sum()) >= int((cheap[name].index == 0).sum())
    weights = weights_of(model)
    error = {name: (weights[name].detach() - dear[name].weight).square().mean() for name in dear}
    assert error["0"] > error["4"], "the layer that matters more is kept closer"


def test_wrong_use_is_named():
    with pytest.raises(ConfigError, match="no layer with a weight of shape"):
        attach(network(), {"0": share(torch.ones(2, 2), 2)})
    with pytest.raises(ConfigError, match="'9' is no layer"):
        attach(network(), {"9": share(torch.ones(2, 2), 2)})
    assert np.isfinite(list(importance(network(), [(IMAGES, LABELS)]).values())).all()


def test_the_price_of_a_size_gives_that_size():
    model = nn.Sequential(nn.Linear(300, 100), nn.Linear(100, 200))
    with torch.no_grad():
        for weight in weights_of(model).values():
            weight.normal_()
    for unit, megabytes in product((1.0, 1e-12), (0.004, 0.012)):  # an importance may have any unit
        importances = {"0": unit, "1": 20 * unit}
        shared = share_network(model, importances, price_of_size(model, importances, megabytes))
        bits = sum(entropy_bits(torch.bincount(found.index.flatten()).numpy()) for found in shared.values())
        assert bits / 8e6 == pytest.approx(megabytes, rel=0.04)
    with pytest.raises(ConfigError, match="cannot be shared in -1 MB"):
        price_of_size(model, importances, -1.0)


def test_plain_weights_replace_looked_up_ones():
    """A copy into what is looked up would be lost without a word."""
    model = network()
    two = {name: share(weight, 2) for name, weight in weights_of(model).items()}
    plain = with_weights(attach(model, shares(model)), two)
    for name, weight in weights_of(plain).items():
        assert torch.equal(weight.detach(), two[name].weight) and weight.is_leaf

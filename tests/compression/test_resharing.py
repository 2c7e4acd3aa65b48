"""Weights that may change sides: cheapest by brute force, straight-through, the size holds, resumed runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantlib.compression.codebook import weights_of, with_weights
from quantlib.compression.huffman import entropy_bits
from quantlib.compression.rate import share_at_rate
from quantlib.compression.resharing import Cheapest, Resharing, edges_of, free_weights, settled
from quantlib.errors import ConfigError
from quantlib.subject.data import Images
from quantlib.subject.models import build
from quantlib.subject.recipe import Recipe
from quantlib.subject.state import save_state
from quantlib.subject.trainer import Trainer

RECIPE = Recipe("tiny", "resnet20", ((2, 16),), batch_size=8, learning_rate=0.05, weight_decay=0.0)


def images(n=32):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(n) % 10, split="train", source="slice")


def hooks(megabytes=0.06, **options):
    torch.manual_seed(0)
    model = build("resnet20")
    importances = dict.fromkeys(weights_of(model), 1.0)
    return model, importances, Resharing(model, importances, megabytes, 8, **options)


def trainer_of(hook, folder):
    model = hook.network
    return Trainer(RECIPE, images(), images(), folder, model=model, hooks=hook, compile_model=False)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 16), st.floats(0, 2), st.sampled_from([0.0, 1.1, 5.0]))
def test_edges_choose_what_a_search_over_all_values_chooses(seed, clusters, price, apart):
    weight = torch.randn(3000, generator=torch.Generator().manual_seed(seed))
    weight = torch.where(weight < 0, weight - apart, weight + apart)  # two heaps: none need be at zero
    shared = share_at_rate(weight, clusters, price)
    members = torch.bincount(shared.index, minlength=len(shared.codebook))
    codebook, edges = edges_of(shared.codebook, members, price)
    chosen = Cheapest.apply(weight, edges, codebook)
    bits = -(members.double() / len(weight)).log2()  # infinite where there are none
    cost = (weight.double()[:, None] - shared.codebook.double()).square() + max(price, 1e-12) * bits
    place = (chosen[:, None] == shared.codebook).int().argmax(1)
    paid = cost.gather(1, place[:, None])[:, 0]
    assert float((paid - cost.min(1).values).max()) < 1e-5


def test_edges_by_hand():
    # 0 has a word of 1 bit, 1 and -2 of 2 bits: the edge lies above the middle, as far as the price says.
    codebook, edges = edges_of(torch.tensor([0.0, 1.0, -2.0, 9.0]), torch.tensor([4, 2, 2, 0]), 0.4)
    assert codebook.tolist() == [-2.0, 0.0, 1.0]
    torch.testing.assert_close(edges, torch.tensor([-1.0 - 0.4 / 4, 0.5 + 0.4 / 2]))
    codebook, edges = edges_of(torch.tensor([0.0, 1.0]), torch.tensor([5, 0]), 0.1)
    assert codebook.tolist() == [0.0] and edges.tolist() == []


def test_the_gradient_passes_straight_through():
    weight = torch.tensor([-0.9, 0.1, 0.8], requires_grad=True)
    shared = Cheapest.apply(weight, torch.tensor([-0.5, 0.5]), torch.tensor([-1.0, 0.0, 1.0]))
    assert shared.tolist() == [-1.0, 0.0, 1.0]
    (shared * torch.tensor([2.0, 3.0, 5.0])).sum().backward()
    assert weight.grad.tolist() == [2.0, 3.0, 5.0]


def test_a_network_begins_with_the_size_that_was_asked_for():
    model, importances, hook = hooks()
    plain = with_weights(*settled(hook.network, importances, 0.06, 8))
    assert type(plain.conv1) is nn.Conv2d and not list(free_weights(plain))
    bits = 0.0
    for name, weight in weights_of(plain).items():
        values, members = weight.detach().unique(return_counts=True)
        assert len(values) <= 9
        bits += entropy_bits(members.numpy())
        own = hook.network.get_submodule(name).weight
        assert torch.isclose(own, weight, atol=1e-3).float().mean() > 0.98  # but for bins at the edges
    assert bits / 8e6 == pytest.approx(0.06, rel=0.03)
    assert model.conv1.weight.requires_grad and not free_weights(model)  # the original is left alone


def test_weights_change_sides_and_the_size_holds(tmp_path):
    _, importances, hook = hooks(every=2)
    before = {name: layer.weight.detach() == 0 for name, layer in layers(hook.network)}
    trainer = trainer_of(hook, tmp_path)
    hook.price *= 3  # as if the weights had moved that far
    shared, reshare = [], hook.reshare
    hook.reshare = lambda network: shared.append(network) or reshare(network)
    trainer.run()
    assert [network is trainer.model for network in shared] == [True, False, True, True, False, True]
    after = {name: layer.weight.detach() == 0 for name, layer in layers(trainer.model)}
    left = sum(int((before[name] & ~after[name]).sum()) for name in before)
    came = sum(int((~before[name] & after[name]).sum()) for name in before)
    assert left > 100 and came > 100
    assert reshare(trainer.model) == pytest.approx(0.06, rel=0.1)
    judged = with_weights(*settled(trainer.average.model, importances, 0.06, 8))
    for name, layer in layers(trainer.average.model):  # but for bins, and a price that is some percent off
        same = (judged.get_submodule(name).weight == 0) == (layer.weight == 0)
        assert same.float().mean() > 0.95


def layers(network):
    return [(name, network.get_submodule(name)) for name in free_weights(network)]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def trained(folder, stop=None):
        trainer = trainer_of(hooks(every=3)[2], folder)
        if stop:
            while trainer.step < stop:
                trainer.train_step()
            return save_state(trainer)
        trainer.run()
        return trainer.model.state_dict()

    whole = trained(tmp_path / "whole")
    trained(tmp_path / "parts", stop=5)  # two steps after a sharing, and none at the end of the epoch
    resumed = trained(tmp_path / "parts")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="every is the number of steps"):
        hooks(every=0)
    with pytest.raises(ConfigError, match="not those of this model's layers: look at 'fc'"):
        model = build("resnet20")
        Resharing(model, {name: 1.0 for name in weights_of(model) if name != "fc"}, 0.06)

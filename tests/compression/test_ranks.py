"""Ranks of a network: costs against torch's own counter, errors against measured outputs, budgets against
brute force over every combination."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from quantlib.compression.budget import allocate, share_of, total, uniform
from quantlib.compression.costs import convolution_macs
from quantlib.compression.factorized import Plan, factorize, factorized
from quantlib.compression.ranks import (
    Choice,
    by_energy,
    convolutions,
    list_choices,
    plans_within,
    rungs,
)
from quantlib.compression.windows import logit_influence, second_moments
from quantlib.errors import ConfigError
from quantlib.quantization.graph import fold_batch_norm
from quantlib.subject.models import build


def counted(model, x):
    """Multiply-adds as torch counts them: half of its flops."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() // 2


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24),
        nn.ReLU(inplace=True), nn.Conv2d(24, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    ).eval()  # fmt: skip


def batches(n=3, side=12):
    torch.manual_seed(1)
    return [(torch.randn(4, 3, side, side), None) for _ in range(n)]


@pytest.mark.parametrize(
    "plan",
    [None, Plan("channel", 3), Plan("spatial", 4), Plan("tucker2", (5, 2))],
    ids=str,
)
@pytest.mark.parametrize(
    "shape", [{}, {"stride": 2}, {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2)}], ids=str
)
def test_multiply_adds_are_those_torch_counts(plan, shape):
    conv = nn.Conv2d(6, 8, **{"kernel_size": 3, "padding": 1, **shape}, bias=False)
    layer = conv if plan is None else factorized(conv, plan)
    assert convolution_macs(layer, (11, 14)) == counted(layer, torch.randn(1, 6, 11, 14))


def test_a_choice_says_what_the_layer_then_costs_and_errs():
    model, x = small_network(), torch.cat([x for x, _ in batches()])
    moments = second_moments(model, batches(), ["2"])  # 36 places of 6 x 6: all are taken
    options = list_choices(model, x[:1], moments, points=4, step=4)
    assert {way.plan.method for way in options["2"][1:]} == {"channel", "spatial", "tucker2"}
    seen = model[:2](x)
    for way in options["2"]:
        layer = model[2] if way.plan is None else factorized(model[2], way.plan, moments["2"])
        assert way.macs == counted(layer, seen[:1]) <= options["2"][0].macs
        assert way.parameters == sum(weight.numel() for weight in layer.parameters())
        measured = (layer(seen) - model[2](seen)).square().mean((0, 2, 3)).sum().item()
        assert way.error == pytest.approx(measured, rel=2e-3, abs=1e-5)


def test_ranks_are_multiples_and_save_something():
    model = build("resnet20").eval()
    names = ["layer1.0.conv1", "layer3.0.conv1", "layer2.0.downsample.0"]
    moments = second_moments(model, [(torch.randn(2, 3, 32, 32), None)], names)
    options = list_choices(model, torch.randn(1, 3, 32, 32), moments, points=3, step=8)
    for ways in options.values():
        assert all(way.macs < ways[0].macs for way in ways[1:])
        ranks = [rank for way in ways[1:] for rank in torch.tensor(way.plan.rank).flatten().tolist()]
        assert ranks and all(rank % 8 == 0 for rank in ranks)
    assert {way.plan.method for way in options["layer2.0.downsample.0"][1:]} == {"channel"}


def test_influence_is_the_squared_jacobian():
    """One logit: the random sign squares away, so the estimate is exact."""
    model = nn.Sequential(*small_network()[:-1], nn.Linear(32, 1)).eval()
    data = batches(2)
    found = logit_influence(model, data, ["2"])["2"]
    y = model[:3](torch.cat([x for x, _ in data])).detach()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: model[4:](model[3](one[None]))[0, 0]))(y)
    torch.testing.assert_close(found, jacobian.square().sum((2, 3)).mean(0), rtol=1e-4, atol=1e-9)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_influence_foretells_how_far_the_logits_move():
    model, data = small_network(), batches(10)
    channels = logit_influence(model, data, ["2"])["2"]
    size, moved = 1e-3, 0.0
    torch.manual_seed(2)

    def disturb(conv, inputs, output):
        return output + size * torch.randn_like(output)

    for x, _ in data:
        clean = model(x)
        handle = model[2].register_forward_hook(disturb)
        moved += (model(x) - clean).square().sum(1).mean().item() / len(data)
        handle.remove()
    assert moved == pytest.approx(size**2 * channels.sum().item(), rel=0.2)


def brute_force(options, budget, of):
    """The least error of all combinations within the budget."""
    fitting = [pick for pick in product(*options.values()) if sum(getattr(way, of) for way in pick) <= budget]
    return min(sum(way.error for way in pick) for pick in fitting)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), share=st.floats(0.35, 1.0), of=st.sampled_from(["macs", "parameters"]))
def test_allocation_is_the_best_of_all_combinations(seed, share, of):
    generator = torch.Generator().manual_seed(seed)

    def some(high):
        return int(torch.randint(1, high, (), generator=generator))

    options = {}
    for name in "abcd":
        whole = 100 + some(900)
        ways = [
            Choice(Plan("channel", rank), whole * rank // 5, whole * rank // 6, some(100) / rank)
            for rank in range(1, 5)
        ]
        options[name] = [Choice(None, whole, whole, 0.0), *ways]
    plans = allocate(options, share, of)
    whole = sum(getattr(ways[0], of) for ways in options.values())
    assert total(options, plans, of) <= share * whole and share_of(options, plans, of) <= share
    assert total(options, plans, "error") == pytest.approx(brute_force(options, share * whole, of))
    same = uniform(options, share, of)
    assert total(options, same, of) <= share * whole
    assert total(options, plans, "error") <= total(options, same, "error") + 1e-9


def test_uniform_by_hand():
    ways = [
        Choice(None, 100, 10, 0.0),
        Choice(Plan("channel", 8), 60, 9, 1.0),
        Choice(Plan("channel", 4), 30, 4, 3.0),
    ]
    options = {"a": ways, "b": ways[:2]}
    assert uniform(options, 1.0) == {}
    assert uniform(options, 0.6) == {"a": Plan("channel", 8), "b": Plan("channel", 8)}
    assert uniform(options, 0.5) == {"a": Plan("channel", 4), "b": Plan("channel", 8)}  # the cheapest it has
    assert uniform(options, 0.7, "parameters") == {"a": Plan("channel", 4), "b": Plan("channel", 8)}
    assert uniform(options, 0.8) == {
        "a": Plan("channel", 8),
        "b": Plan("channel", 8),
    }  # 0.99 each is no choice
    with pytest.raises(ConfigError, match="larger share"):
        uniform(options, 0.4)


@pytest.mark.parametrize(
    "share, of, words",
    [(0.5, "seconds", "of macs or parameters"), (0.0, "macs", "above 0"), (0.1, "macs", "larger share")],
)
def test_budgets_that_cannot_be(share, of, words):
    options = {"a": [Choice(None, 100, 10, 0.0), Choice(Plan("channel", 4), 30, 4, 3.0)]}
    with pytest.raises(ConfigError, match=words):
        allocate(options, share, of)


def test_by_energy_leaves_out_what_would_not_save():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(8, 1, 1, 1) * torch.randn(1, 8, 3, 3))  # of rank 1
    x = torch.randn(1, 8, 6, 6)
    assert by_energy(model, x, 0.999) == {"0": Plan("channel", 1)}
    assert by_energy(model, x, 0.999, "tucker2") == {"0": Plan("tucker2", (1, 8))}
    same = factorize(model, by_energy(model, x, 0.999))
    torch.testing.assert_close(same(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="no method 'cp'"):
        by_energy(model, x, 0.9, "cp")


def test_a_traced_and_folded_network_is_factorized_too():
    model, x = small_network(), torch.randn(2, 3, 12, 12)
    folded = fold_batch_norm(model)
    plans = {
        name: Plan("channel", min(conv.weight.flatten(1).shape))
        for name, conv in convolutions(folded).items()
    }
    moments = second_moments(folded, batches(), list(plans))
    torch.testing.assert_close(factorize(folded, plans, moments)(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["channel", "spatial", "tucker2"])
def test_plans_within_a_share_by_hand(method):
    """A 3 x 3 layer of 16 channels: 9 * 256 multiply-adds at each place."""
    macs = {
        "channel": lambda r: 10 * 16 * r,
        "spatial": lambda r: 6 * 16 * r,
        "tucker2": lambda r: 32 * r + 9 * r * r,
    }[method]
    conv = nn.Conv2d(16, 16, 3, padding=1)
    ranks = [rank for rank in range(1, 17) if macs(rank) < 0.5 * 9 * 256]
    if method == "spatial":
        ranks = [rank for rank in range(1, 49) if macs(rank) < 0.5 * 9 * 256]
    found = [plan.rank for plan in plans_within(conv, method, (8, 8), 0.5, step=1)]
    assert found == [(rank, rank) if method == "tucker2" else rank for rank in ranks]


def test_choices_weigh_every_channel_by_its_influence():
    """Against measured outputs: the squared error of each channel times its influence, summed."""
    model, x = small_network(), torch.cat([x for x, _ in batches()])
    moments, influence = second_moments(model, batches(), ["2"]), torch.logspace(-2, 2, 24)
    options = list_choices(model, x[:1], moments, {"2": influence}, points=3, step=4)
    seen = model[:2](x)
    assert {way.plan.method for way in options["2"][1:]} == {"channel", "spatial", "tucker2"}
    for way in options["2"][1:]:
        layer = factorized(model[2], way.plan, moments["2"], influence)
        measured = ((layer(seen) - model[2](seen)).square().mean((0, 2, 3)) * influence).sum().item()
        assert way.error == pytest.approx(measured, rel=5e-3, abs=1e-4), way.plan


def test_both_ranks_of_tucker_rise_in_proportion():
    conv = nn.Conv2d(16, 32, 3)
    found = {name: [plan.rank for plan in rungs(conv, name, 8)] for name in ("channel", "spatial", "tucker2")}
    assert found["tucker2"] == [(8, 8), (16, 8), (24, 16), (32, 16)]
    assert found["channel"] == [8, 16, 24, 32] and found["spatial"] == [8, 16, 24, 32, 40, 48]


def test_energy_by_rows_against_columns():
    """A filter bank of one column times one row has the spatial rank 1, and another one by channels."""
    conv, generator = nn.Conv2d(6, 8, 3, padding=1, bias=False), torch.Generator().manual_seed(0)
    rows, columns = torch.randn(6, 3, generator=generator), torch.randn(8, 3, generator=generator)
    with torch.no_grad():
        conv.weight.copy_(torch.einsum("ih,ow->oihw", rows, columns))
    model, x = nn.Sequential(conv), torch.randn(1, 6, 8, 8)
    assert by_energy(model, x, 0.999, "spatial") == {"0": Plan("spatial", 1)}
    assert by_energy(model, x, 0.999, "channel") == {"0": Plan("channel", 3)}

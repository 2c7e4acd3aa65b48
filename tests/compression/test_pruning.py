"""Masks against torch.nn.utils.prune, schedules by hand, batch-norm statistics against numpy."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from quantlib.compression import pruning
from quantlib.compression.pruning import (
    SCOPES,
    Schedule,
    apply_masks,
    magnitude_masks,
    prunable,
    recalibrate,
    sparsity_of,
)
from quantlib.errors import ConfigError, NonFiniteError
from quantlib.subject.models import build
from tests.quantization.networks import Tiny, randomize

pytestmark = pytest.mark.usefixtures("one_thread")


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def oracle(model: nn.Module, amount: float, scope: str, within=None) -> dict[str, torch.Tensor]:
    """What torch.nn.utils.prune keeps; `within`: masks of its own first round."""
    model = copy.deepcopy(model)
    found = layers(model)
    for name, mask in (within or {}).items():
        prune.custom_from_mask(found[name], "weight", mask.float())
    if scope == "global":
        pairs = [(module, "weight") for module in found.values()]
        prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=amount)
    else:
        for module in found.values():
            prune.l1_unstructured(module, "weight", amount)
    return {name: module.weight_mask.bool() for name, module in found.items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("scope", ["global", "layer"])
@settings(deadline=None, max_examples=25)
@given(amount=st.floats(0.001, 0.999), seed=st.integers(0, 999), ties=st.booleans())
def test_masks_are_those_of_torch(scope: str, amount: float, seed: int, ties: bool) -> None:
    torch.manual_seed(seed)
    model = Tiny()
    if not ties:
        assert same(magnitude_masks(model, amount, scope), oracle(model, amount, scope))
        return
    for weight in prunable(model).values():  # many weights of one magnitude: the same number of each goes
        weight.data = (weight.data * 4).round() / 4
    found, wanted = magnitude_masks(model, amount, scope), oracle(model, amount, scope)
    for group in [list(found)] if scope == "global" else [[name] for name in found]:
        kept = [
            torch.cat([prunable(model)[name][masks[name]].abs() for name in group]).sort().values
            for masks in (found, wanted)
        ]
        assert torch.equal(*kept)
        size = torch.cat([prunable(model)[name].detach().abs().flatten() for name in group])
        gone = torch.cat([~found[name].flatten() for name in group])
        if gone.any():  # of equal ones, those that come first
            at_limit = gone[size == size[gone].max()].int()
            assert bool((at_limit.diff() <= 0).all())


def test_masks_of_resnet20_are_those_of_torch() -> None:
    model = build("resnet20").to(memory_format=torch.channels_last)
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for amount in (0.5, 0.95):
        assert same(magnitude_masks(model, amount), oracle(plain, amount, "global"))


def lamp_by_definition(model: nn.Module, sparsity: float) -> dict[str, torch.Tensor]:
    """The score of each weight by the formula of the paper, one by one, in exact order."""
    scores = []
    for name, weight in prunable(model).items():
        squares = [value * value for value in weight.detach().double().flatten().tolist()]
        for place, square in enumerate(squares):
            scores.append((square / sum(other for other in squares if other >= square), name, place))
    masks = {name: torch.ones(weight.numel(), dtype=torch.bool) for name, weight in prunable(model).items()}
    for _, name, place in sorted(scores)[: round(sparsity * len(scores))]:
        masks[name][place] = False
    return {name: mask.view(prunable(model)[name].shape) for name, mask in masks.items()}


@settings(deadline=None, max_examples=15)
@given(sparsity=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_lamp_is_the_papers_formula(sparsity: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(6, 5))
    assert same(magnitude_masks(model, sparsity, "lamp"), lamp_by_definition(model, sparsity))


def test_lamp_does_not_mind_the_scale_of_a_layer_and_empties_none() -> None:
    model = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 5))
    before = magnitude_masks(model, 0.99, "lamp")
    model[0].weight.data *= 64
    assert same(magnitude_masks(model, 0.99, "lamp"), before)
    assert all(bool(mask.any()) for mask in before.values())
    assert not magnitude_masks(model, 0.99, "global")["1.weight"].any()


@pytest.mark.parametrize("scope", ["global", "layer", "lamp"])
def test_a_second_round_keeps_what_the_first_dropped(scope: str) -> None:
    model = Tiny()
    first = magnitude_masks(model, 0.5, scope)
    apply_masks(model, first)
    for weight in prunable(model).values():
        weight.data += 0.05  # retraining that moves dropped weights, were they not held
    second = magnitude_masks(model, 0.8, scope, within=first)
    assert not any((second[name] & ~first[name]).any() for name in first)
    total = sum(mask.numel() for mask in first.values())
    if scope == "global":
        assert sum(int(mask.sum()) for mask in second.values()) == total - round(0.8 * total)
        amount = round(0.8 * total) - round(0.5 * total)  # torch counts the second amount on what is left
        assert same(second, oracle(model, amount, scope, within=first))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_random_masks_have_the_count_and_follow_the_seed(scope: str) -> None:
    model = build("resnet20")
    masks = pruning.random_masks(model, 0.9, scope, seed=3)
    assert sparsity_of(masks) == pytest.approx(0.9, abs=1e-3)
    assert same(masks, pruning.random_masks(model, 0.9, scope, seed=3))
    assert not same(masks, pruning.random_masks(model, 0.9, scope, seed=4))
    kept = torch.cat([mask.flatten() for mask in masks.values()]).numpy()
    halves = [half.mean() for half in np.array_split(kept, 2)]
    assert abs(halves[0] - halves[1]) < 0.01  # no end of the network is preferred


def test_shuffled_masks_keep_each_layers_count() -> None:
    masks = magnitude_masks(build("resnet20"), 0.9)
    shuffled = pruning.shuffled_masks(masks, seed=1)
    assert {k: int(v.sum()) for k, v in masks.items()} == {k: int(v.sum()) for k, v in shuffled.items()}
    overlap = sum(int((masks[k] & shuffled[k]).sum()) for k in masks) / sum(
        int(v.sum()) for v in masks.values()
    )
    assert overlap < 0.3


def test_applied_masks_are_found_again_and_biases_stay() -> None:
    model = randomize(Tiny())
    before = copy.deepcopy(model.state_dict())
    masks = magnitude_masks(model, 0.7)
    apply_masks(model, masks)
    assert same(pruning.masks_of(model), masks)
    for name, value in model.state_dict().items():
        wanted = torch.where(masks[name], before[name], 0) if name in masks else before[name]
        assert torch.equal(value, wanted)


def test_schedules_by_hand() -> None:
    gradual = Schedule(0.8, "gradual", initial=0.2, until=0.5)
    assert [gradual(p) for p in (0, 0.25, 0.5, 0.9)] == pytest.approx([0.2, 0.8 - 0.6 / 8, 0.8, 0.8])
    iterative = Schedule(0.875, "iterative", rounds=3, until=0.75)  # a half goes each time
    assert [iterative(p) for p in (0, 0.24, 0.26, 0.51, 1)] == pytest.approx([0.5, 0.5, 0.75, 0.875, 0.875])
    assert Schedule(0.9)(0.0) == 0.9


@given(kind=st.sampled_from(pruning.KINDS), final=st.floats(0, 0.99), rounds=st.integers(1, 9),
       until=st.floats(0.1, 1), share=st.floats(0, 1))  # fmt: skip
def test_schedules_only_rise_and_end_at_the_goal(kind, final, rounds, until, share) -> None:
    schedule = Schedule(final, kind, final * share, rounds, until)
    values = [schedule(p / 50) for p in range(51)]
    assert all(b >= a - 1e-12 for a, b in zip(values, values[1:], strict=False))
    assert values[-1] == pytest.approx(final) and min(values) >= final * share - 1e-12


@pytest.mark.parametrize("call, words", [
    (lambda m: magnitude_masks(m, 1.0), "sparsity is 1"),
    (lambda m: magnitude_masks(m, 0.5, "block"), "choose one of global, layer"),
    (lambda m: Schedule(0.9, "slow"), "choose one of one_shot, iterative, gradual"),
    (lambda m: Schedule(0.9, initial=0.95), "0 <= initial <= final"),
])  # fmt: skip
def test_mistakes_have_their_sentence(call, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call(Tiny())


def test_recalibration_gives_the_plain_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)).eval()
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((3, 8, 1, 4, 4))).float()
    pruning.recalibrate(model, [(batch, batch) for batch in x])
    maps = x.numpy() * model[0].weight.detach().numpy().reshape(1, 1, 2, 1, 1)
    np.testing.assert_allclose(model[1].running_mean, maps.mean((0, 1, 3, 4)), rtol=1e-5, atol=1e-6)
    variances = maps.var((1, 3, 4), ddof=1).mean(0)
    np.testing.assert_allclose(model[1].running_var, variances, rtol=1e-5)
    assert not model[1].training and model[1].momentum == 0.1


def test_recalibration_without_a_batch_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    model[1].running_mean.fill_(7)
    with pytest.raises(ConfigError, match="got no batches"):
        pruning.recalibrate(model, iter([]))
    assert (model[1].running_mean == 7).all()
    x = torch.randn(50, 3)
    pruning.recalibrate(model, [(x, torch.zeros(50))])
    assert torch.allclose(model[1].running_mean, model[0](x).mean(0), atol=1e-5) and not model[1].training
    kept = model[1].running_mean.clone()
    with pytest.raises(RuntimeError):
        pruning.recalibrate(model, [(torch.randn(2, 3), None), (torch.randn(2, 9), None)])
    assert torch.equal(model[1].running_mean, kept) and kept.any()
    assert model[1].momentum == 0.1 and not model[1].training  # as it was, whatever happened


def test_a_weight_that_is_no_number_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        magnitude_masks(model, 0.25)


def test_dropped_weights_stay_dropped_when_less_is_asked_for():
    layer = nn.Linear(8, 1)
    first = magnitude_masks(layer, 0.75)
    for scope in SCOPES:
        assert torch.equal(magnitude_masks(layer, 0.5, scope, within=first)["weight"], first["weight"])


def test_a_weight_that_two_layers_share_is_pruned_once():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    masks = magnitude_masks(model, 0.5)
    assert list(masks) == ["0.weight"] and sparsity_of(masks) == 0.5
    apply_masks(model, masks)
    assert int((second.weight == 0).sum()) == 8


def test_a_network_without_weights_to_prune_is_named():
    with pytest.raises(ConfigError, match="nothing can be pruned"):
        magnitude_masks(nn.ReLU(), 0.5)
    assert sparsity_of({}) == 0


def test_recalibrate_leaves_each_norm_in_its_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval())
    recalibrate(model, [(torch.randn(2, 3, 4, 4), torch.zeros(2))])
    assert [module.training for module in model] == [True, True, False]

"""Low-rank factors against Eckart and Young, full-rank identity, and products computed by numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantlib.compression.factorized import Plan, factor_shapes, factorize, factorized, skeleton_of
from quantlib.compression.lowrank import (
    METHODS,
    aware_factors,
    composed,
    of_one_size,
    output_error,
    rank_by_energy,
    truncated_svd,
    tucker2_factors,
)
from quantlib.errors import ConfigError
from quantlib.subject.models import build


def conv(kernel=3, stride=1, padding=1, dilation=1, inputs=6, out=8, seed=0):
    torch.manual_seed(seed)
    return nn.Conv2d(inputs, out, kernel, stride, padding, dilation)


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), rank=st.integers(1, 12), seed=st.integers(0, 99))
def test_error_is_that_of_the_dropped_singular_values(rows, columns, rank, seed):
    rank = min(rank, rows, columns)
    matrix = torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns)))
    left, right = truncated_svd(matrix, rank)
    dropped = np.linalg.svd(matrix.numpy(), compute_uv=False)[rank:]
    assert torch.linalg.norm(matrix - left @ right).item() == pytest.approx(
        np.sqrt((dropped**2).sum()), abs=1e-12
    )


@settings(deadline=None, max_examples=30)
@given(rank=st.integers(1, 5), seed=st.integers(0, 99))
def test_no_other_product_of_that_rank_is_nearer(rank, seed):
    rng = np.random.default_rng(seed)
    matrix = torch.from_numpy(rng.standard_normal((6, 7)))
    left, right = truncated_svd(matrix, rank)
    best = torch.linalg.norm(matrix - left @ right)
    for size in (1e-3, 1e-1, 1.0):
        other = left + size * torch.from_numpy(rng.standard_normal(left.shape))
        assert torch.linalg.norm(matrix - other @ right) >= best
        assert torch.linalg.norm(matrix - other @ torch.linalg.lstsq(other, matrix).solution) >= best - 1e-12


def test_rank_by_energy_by_hand():
    matrix = torch.diag(torch.tensor([4.0, 2.0, 2.0, 1.0]))  # squares 16, 4, 4, 1 of 25
    asked = {0.5: 1, 0.64: 1, 0.65: 2, 0.8: 2, 0.81: 3, 0.96: 3, 0.97: 4, 1.0: 4}
    assert {energy: rank_by_energy(matrix, energy) for energy in asked} == asked


FULL = {"channel": 8, "spatial": 18, "tucker2": (8, 6)}


@pytest.mark.parametrize("method", FULL)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"kernel": (3, 5), "stride": (2, 1), "padding": (1, 2)},
    ],
    ids=str,
)
def test_full_rank_is_the_layer_itself(method, shape):
    layer = conv(**shape)
    rank = {"spatial": min(6 * layer.kernel_size[0], 8 * layer.kernel_size[1])}.get(method, FULL[method])
    x = torch.randn(2, 6, 11, 12)
    torch.testing.assert_close(factorized(layer, Plan(method, rank))(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method, rank", [("channel", 6), ("tucker2", (8, 6)), ("spatial", 6)])
def test_pointwise_with_a_stride(method, rank):
    layer = conv(kernel=1, stride=2, padding=0)
    x = torch.randn(2, 6, 9, 9)
    split = factorized(layer, Plan(method, rank))
    torch.testing.assert_close(split(x), layer(x), rtol=1e-4, atol=1e-5)
    assert [tuple(part.stride) for part in split][0] == (2, 2)  # stride first: the rest computes less


@pytest.mark.parametrize("method, rank", [("channel", 3), ("spatial", 5), ("tucker2", (4, 3))])
def test_output_error_is_the_weights_error(method, rank):
    """The composed filter, found by feeding unit impulses, is the product of the factors."""
    layer = conv(kernel=3, padding=2)
    split = factorized(layer, Plan(method, rank))
    impulses = torch.eye(6)[:, :, None, None]
    composed = (split(impulses) - layer.bias[:, None, None]).flip(2, 3).transpose(0, 1)
    count = {"channel": 3 * (54 + 8), "spatial": 5 * (18 + 24), "tucker2": 3 * 6 + 9 * 12 + 4 * 8}[method]
    assert sum(part.weight.numel() for part in split) == count
    exact = {"channel": layer.weight.flatten(1), "spatial": layer.weight.permute(1, 2, 0, 3).reshape(18, 24)}
    error = torch.linalg.norm(composed - layer.weight).item()
    if method in exact:
        dropped = np.linalg.svd(exact[method].detach().numpy(), compute_uv=False)[rank:]
        assert error == pytest.approx(np.sqrt((dropped**2).sum()), rel=1e-4)
    else:
        assert 0 < error < torch.linalg.norm(layer.weight).item()


def test_tucker_error_never_rises_with_sweeps_and_beats_plain_hosvd():
    weight = conv().weight.detach().double()

    def error(sweeps):
        first, core, last = tucker2_factors(weight, (3, 2), sweeps)
        composed = torch.einsum("or,rshw,si->oihw", last[:, :, 0, 0], core, first[:, :, 0, 0])
        return torch.linalg.norm(weight - composed).item()

    errors = [error(sweeps) for sweeps in (1, 2, 4, 20)]
    assert all(later <= earlier + 1e-12 for earlier, later in zip(errors, errors[1:], strict=False))
    a = torch.linalg.svd(weight.flatten(1)).U[:, :3]
    b = torch.linalg.svd(weight.transpose(0, 1).flatten(1)).U[:, :2]
    plain = torch.einsum("oihw,or,pr,is,js->pjhw", weight, a, a, b, b)
    assert errors[-1] <= torch.linalg.norm(weight - plain).item() + 1e-12


def test_factorize_replaces_what_is_named_and_nothing_else():
    torch.manual_seed(0)
    model = build("resnet20").eval()
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    chosen = names[3]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = factorize(model, {chosen: Plan("channel", 4)})
    assert isinstance(small.get_submodule(chosen), nn.Sequential)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    kept = set(before) - {f"{chosen}.weight"}
    assert kept <= set(small.state_dict())
    full = model.get_submodule(chosen).weight.flatten(1).shape
    same = factorize(model, {chosen: Plan("channel", min(full))})
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(same(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, plan, words",
    [
        ("nothing", Plan("channel", 1), "'nothing' is not a convolution"),
        ("1", Plan("channel", 1), "'1' is not a convolution"),
        ("0", Plan("cp", 1), "no method 'cp'"),
        ("0", Plan("channel", 0), "rank is 0; this layer allows 1 to 8"),
        ("0", Plan("channel", 9), "allows 1 to 8"),
        ("0", Plan("tucker2", (9, 2)), "allows 1 to 8"),
        ("0", Plan("tucker2", (8, 7)), "allows 1 to 6"),
        ("2", Plan("channel", 1), "Layer '2': only convolutions without groups"),
    ],
)
def test_refusals_name_the_layer_and_what_it_allows(name, plan, words):
    model = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2))
    with pytest.raises(ConfigError, match=words.replace("(", r"\(").replace(")", r"\)")):
        factorize(model, {name: plan})


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.1, float("nan")])
def test_energy_out_of_range(energy):
    with pytest.raises(ConfigError, match="give a share"):
        rank_by_energy(torch.eye(3), energy)


def seen_by(layer, n=6):
    """Inputs whose channels differ in power and depend on each other, and the moment of all their windows."""
    torch.manual_seed(3)
    mixing = torch.randn(6, 6) * torch.logspace(-1, 1, 6)
    x = torch.einsum("ij,njhw->nihw", mixing, torch.randn(n, 6, 8, 8))
    windows = nn.functional.unfold(x, layer.kernel_size, padding=layer.padding).transpose(1, 2).flatten(0, 1)
    return x, windows.t() @ windows / len(windows)


@pytest.mark.parametrize("method, rank", [("channel", 3), ("spatial", 5), ("tucker2", (4, 3))])
def test_composed_filters_do_what_the_factors_do(method, rank):
    layer = conv()
    parts = METHODS[method](layer.weight.detach(), rank)
    x = torch.randn(2, 6, 9, 9)
    whole = nn.functional.conv2d(x, composed(parts), layer.bias, padding=1)
    torch.testing.assert_close(factorized(layer, Plan(method, rank))(x), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method, rank", [("channel", 3), ("spatial", 5), ("tucker2", (4, 3))])
def test_outputs_err_less_when_the_inputs_are_known(method, rank):
    layer = conv()
    x, moment = seen_by(layer)
    plain, aware = (factorized(layer, Plan(method, rank), m) for m in (None, moment))
    errors = [(split(x) - layer(x)).square().mean((0, 2, 3)).sum().item() for split in (plain, aware)]
    assert errors[1] < 0.8 * errors[0]
    change = layer.weight - composed([part.weight for part in aware])
    assert output_error(change, moment) == pytest.approx(errors[1], rel=1e-3)


@pytest.mark.parametrize("method, rank", [("channel", 8), ("spatial", 18), ("tucker2", (8, 6))])
def test_full_rank_is_exact_whatever_was_seen(method, rank):
    layer = conv()
    moment = seen_by(layer)[1]
    moment.view(6, 9, 6, 9)[2] = 0
    moment.view(6, 9, 6, 9)[:, :, 2] = 0  # a channel that never fired
    influence = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 1e4])
    same = factorized(layer, Plan(method, rank), moment, influence)
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(same(x), layer(x), rtol=1e-3, atol=2e-3)


def test_weighted_channel_factors_are_eckart_and_young_in_the_weighted_norm():
    layer = conv()
    moment, influence = seen_by(layer)[1], torch.rand(8) + 0.1
    parts = aware_factors(layer.weight.detach(), "channel", 3, moment, influence)
    error = output_error(layer.weight.detach() - composed(parts), moment, influence)
    root = np.linalg.cholesky(moment.double().numpy() + 1e-9 * np.eye(54))
    weighted = np.sqrt(influence.numpy())[:, None] * layer.weight.detach().flatten(1).numpy() @ root
    assert error == pytest.approx((np.linalg.svd(weighted, compute_uv=False)[3:] ** 2).sum(), rel=1e-3)


@pytest.mark.parametrize("method, rank", [("channel", 3), ("spatial", 5), ("tucker2", (4, 3))])
def test_factors_have_one_size(method, rank):
    layer = conv()
    moment, influence = seen_by(layer)[1], 1e-6 * (torch.rand(8) + 0.1)  # as small as real ones
    parts = aware_factors(layer.weight.detach(), method, rank, moment, influence)
    sizes = [float(part.norm()) for part in parts]
    assert max(sizes) < 3 * min(sizes)


@settings(deadline=None)
@given(st.lists(st.floats(-15, 15), min_size=2, max_size=3), st.integers(0, 9))
def test_factors_of_one_size_have_the_same_product_to_the_last_bit(powers, seed):
    torch.manual_seed(seed)
    factors = [10**power * torch.randn(3, 3, 1, 1) for power in powers]
    made = of_one_size(factors)
    whole = math.prod(float(part.flatten()[0]) for part in factors)
    assert math.prod(float(part.flatten()[0]) for part in made) == pytest.approx(whole, rel=1e-12)
    ratios = [(one / other).flatten() for one, other in zip(made, factors, strict=True)]
    assert all(bool((ratio == ratio[0]).all()) and math.log2(ratio[0]).is_integer() for ratio in ratios)
    sizes = [float(part.norm()) for part in made]
    assert max(sizes) < 3 * min(sizes)


@pytest.mark.parametrize("method, rank", [("spatial", 5), ("tucker2", (4, 3))])
def test_no_other_last_factor_errs_less(method, rank):
    layer = conv()
    moment = seen_by(layer)[1]
    weight = layer.weight.detach()
    parts = aware_factors(weight, method, rank, moment)
    best = output_error(weight - composed(parts), moment)
    for seed in range(5):
        torch.manual_seed(seed)
        for size in (1e-2, 1e-1):
            other = parts[-1] + size * parts[-1].norm() / parts[-1].numel() ** 0.5 * torch.randn_like(
                parts[-1]
            )
            assert output_error(weight - composed([*parts[:-1], other]), moment) > best


def test_a_skeleton_has_the_same_shape_and_takes_the_weights():
    torch.manual_seed(0)
    model = build("resnet20").eval()
    plans = {"layer1.0.conv1": Plan("tucker2", (8, 4)), "layer2.0.downsample.0": Plan("channel", 5),
             "layer3.0.conv1": Plan("spatial", 7)}  # fmt: skip
    made, empty = factorize(model, plans), skeleton_of(model, plans)
    empty.load_state_dict(made.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(empty(x), made(x))
    for name, plan in plans.items():
        shapes = [tuple(part.weight.shape) for part in made.get_submodule(name)]
        assert shapes == factor_shapes(model.get_submodule(name), plan)


def test_a_bare_convolution_and_one_that_is_used_by_two_names_are_replaced():
    alone = factorize(conv(), {"": Plan("channel", 2)})
    assert isinstance(alone, nn.Sequential) and len(alone) == 2
    layer = conv(inputs=8, out=8)
    both = factorize(nn.Sequential(layer, nn.ReLU(), layer), {"0": Plan("channel", 2)})
    assert both[0] is both[2] and isinstance(both[2], nn.Sequential)


@pytest.mark.parametrize("plan, largest", [
    (Plan("channel", 9), 8), (Plan("channel", 0), 8), (Plan("spatial", 19), 18),
    (Plan("tucker2", (9, 1)), 8), (Plan("tucker2", (1, 7)), 6),
])  # fmt: skip
def test_a_skeleton_has_no_rank_that_the_factors_could_not_have(plan, largest):
    for make in (skeleton_of, factorize):
        with pytest.raises(ConfigError, match=f"'0': rank is .*; this layer allows 1 to {largest}"):
            make(nn.Sequential(conv()), {"0": plan})

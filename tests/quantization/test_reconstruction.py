"""Reconstruction against torch's autograd, finite differences, every rounding, and the converted network."""

from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantlib.errors import ConfigError, NonFiniteError
from quantlib.quantization.affine import QParams, dequantize, fake_quantize, quantize
from quantlib.quantization.graph import fuse
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.reconstruction import (
    LONG,
    LearnedRange,
    LowBitNetwork,
    Recipe,
    SoftRounding,
    Store,
    blocks,
    correct_bias,
    reconstruct,
    rectified_sigmoid,
)
from quantlib.quantization.reconstruction.passes import error, through
from quantlib.quantization.reconstruction.ranges import dropped
from quantlib.quantization.reconstruction.units import pieces, split
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.subject.models import build
from tests.quantization.networks import AtInputs, Tiny, randomize

FEW = Scheme(bits=3, symmetric=True, per_channel=True)
SHORT = Recipe(iterations=12, batch_size=8, rate=0.05)


def images(n=16):
    return torch.randn(n, 3, 8, 8)


def calibrated(bits=4, weight=FEW, network=Tiny):
    torch.manual_seed(0)
    x = images()
    activation = None if bits is None else Scheme(bits=bits, observer="mse")
    return calibrate(prepare(randomize(network()), QConfig(weight, activation)), [x]), x


# Units --------------------------------------------------------------------------------------------------


def test_a_resnet_is_cut_at_its_blocks():
    graph = fuse(build("resnet50").eval()).graph
    names = [unit.name for unit in blocks(graph)]
    stages = {1: 3, 2: 4, 3: 6, 4: 3}
    inner = [f"layer{stage}.{place}" for stage, count in stages.items() for place in range(count)]
    assert names == ["conv1", *inner, "fc"]
    whole = pieces(graph, "network")
    assert [unit.name for unit in whole] == ["network"] and len(whole[0].layers) == 54
    squeeze = [unit.name for unit in blocks(fuse(build("squeezenet").eval()).graph)]
    assert "features.3.squeeze" in squeeze and "features.3" in squeeze  # expand1x1 and expand3x3 together


def test_units_chained_are_the_network():
    prepared, x = calibrated()
    network = LowBitNetwork(prepared, "mixed")
    y = x
    for unit in blocks(prepared.graph):
        y = network.run(unit, y, low_bit=False)
    assert torch.equal(y, prepared.graph_module(x))


@pytest.mark.parametrize("kind", ["mixed", "simulated", "integer"])
def test_the_twin_is_the_converted_network(kind):
    prepared, x = calibrated(bits=5)
    network = LowBitNetwork(prepared, kind)
    y = x
    with torch.no_grad():
        for unit in blocks(prepared.graph):
            y = network.run(unit, y)
        wanted = convert(prepared, "mixed" if kind == "mixed" else "simulated")(x)
    if kind == "mixed":  # its sums are integers, which may fall on the other side of a half
        assert torch.equal(y, AtInputs(prepared).run(x))
        assert torch.isclose(y, wanted, atol=1e-4).all(1).float().mean() > 0.5
        assert F.cosine_similarity(y, wanted).min() > 0.995
    else:
        assert torch.equal(y, wanted)


# Rounding -----------------------------------------------------------------------------------------------


def plain_soft(logits, weight, scale, low, high):
    """The formula of the paper, in torch's own operators."""
    h = torch.clamp(torch.sigmoid(logits) * 1.2 - 0.1, 0, 1)
    return scale * torch.clamp(torch.floor(weight / scale) + h, low, high)


@pytest.mark.parametrize("learn_scale", [False, True])
def test_soft_rounding_and_its_gradients(learn_scale):
    weight = 2 * torch.randn(6, 4, 3, 3)
    grid = QParams(torch.rand(6) * 0.3 + 0.2, torch.zeros(6), -4, 3, axis=0)
    soft = SoftRounding(weight, grid, learn_scale)
    inside = (weight / grid.scale.view(-1, 1, 1, 1) > -4) & (weight / grid.scale.view(-1, 1, 1, 1) < 3)
    assert torch.allclose(soft()[inside], weight[inside], atol=1e-5)  # it starts at the weight itself
    with torch.no_grad():
        soft.logits += torch.randn_like(soft.logits)
    logits = soft.logits.detach().clone().requires_grad_()
    log_scale = torch.zeros(6, 1, 1, 1, requires_grad=True)
    scale = grid.scale.view(-1, 1, 1, 1)
    levels = plain_soft(logits, weight, scale, -4, 3) / scale
    target = torch.randn_like(weight)
    (levels * scale * log_scale.exp() * target).sum().backward()
    (soft() * target).sum().backward()
    assert torch.allclose(soft.logits.grad, logits.grad, atol=1e-6)
    if learn_scale:
        assert torch.allclose(soft.log_scale.grad, log_scale.grad, rtol=1e-4, atol=1e-5)
    else:
        assert soft.log_scale.grad is None


def test_the_penalty_by_hand():
    soft = SoftRounding(
        torch.tensor([[0.5, 0.0, 0.25]]), QParams(torch.ones(1), torch.zeros(1), -2, 1, axis=0)
    )
    # h = 0.5, 0, 0.25: |2h - 1| = 0, 1, 0.5
    assert soft.penalty(2.0).item() == pytest.approx(1 + 0 + 0.75, abs=1e-5)
    assert soft.penalty(20.0).item() == pytest.approx(2, abs=1e-4)


def test_decided_weights_are_one_of_two_neighbours_on_the_grid():
    weight, grid = torch.randn(5, 7), QParams(torch.full((5,), 0.3), torch.zeros(5), -2, 1, axis=0)
    soft = SoftRounding(weight, grid)
    with torch.no_grad():
        soft.logits += 3 * torch.randn_like(soft.logits)
    decided, same = soft.decided()
    q = quantize(decided, same)
    assert torch.equal(dequantize(q, same), decided)
    assert ((q - (weight / 0.3).floor().clamp(-2, 1)) <= 1).all() and (q >= -2).all() and (q <= 1).all()
    up = (rectified_sigmoid(soft.logits) >= 0.5) & (weight / 0.3 > -2) & (weight / 0.3 < 1)
    assert torch.equal(q[up], ((weight / 0.3).floor()[up] + 1).to(q.dtype))


def test_most_of_what_the_best_of_all_roundings_gains():
    """Rows of five weights, few enough to try all 32 roundings; correlated inputs, so nearest loses."""
    torch.manual_seed(4)
    x = torch.randn(300, 1) + 0.4 * torch.randn(300, 5)
    layer = nn.Sequential(nn.Linear(5, 40, bias=False)).eval()
    prepared = prepare(layer, QConfig(FEW, None))
    w, grid = layer[0].weight.detach(), prepared.weights["0"].qparams()
    scale = grid.scale[:, None]
    choices = torch.tensor(list(product((0.0, 1.0), repeat=5)))[:, None]
    every = ((w / scale).floor() + choices).clamp(-4, 3) * scale

    def lost(weight):
        return ((weight - w) @ x.T).square().mean(-1)

    best, nearest = lost(every).amin(0), lost(fake_quantize(w, grid))
    found = reconstruct(prepared, [x], Recipe(iterations=300, batch_size=300, rate=0.02))
    got = lost(found.prepared.graph_module.get_submodule("0").weight.detach())
    assert (got >= best - 1e-6).all()
    assert nearest.sum() - got.sum() > 0.6 * (nearest.sum() - best.sum()) > 0


# Ranges -------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_range_is_torchs_and_the_finite_difference():
    grid = QParams(torch.tensor(0.2), torch.tensor(3), 0, 15)
    x = torch.randn(4, 8, 5, 5).requires_grad_()
    learned = LearnedRange(grid)
    learned.train()
    learned.log_scale.requires_grad_()
    target = torch.randn_like(x)
    (learned(x) * target).sum().backward()
    scale = torch.tensor([0.2], requires_grad=True)
    own = x.detach().clone().requires_grad_()
    theirs = torch._fake_quantize_learnable_per_tensor_affine(own, scale, torch.tensor([3.0]), 0, 15, 1.0)
    (theirs * target).sum().backward()
    assert torch.allclose(learned(x), theirs) and torch.allclose(x.grad, own.grad)
    assert float(learned.log_scale.grad) == pytest.approx(float(scale.grad) * 0.2, rel=1e-3)
    # Far outside the grid there is no rounding, so a difference quotient is exact.
    far, step = torch.full((3,), 9.0), 1e-3
    scales = [0.2 * torch.tensor(sign * step).exp() for sign in (1, -1)]
    ends = [float(fake_quantize(far, QParams(scale, grid.zero_point, 0, 15)).sum()) for scale in scales]
    learned.log_scale.grad = None
    learned(far).sum().backward()
    slope = (ends[0] - ends[1]) / (2 * step)
    assert float(learned.log_scale.grad) == pytest.approx(slope, rel=1e-2)


def test_dropping_leaves_about_that_share_alone():
    learned = LearnedRange(QParams(torch.tensor(0.5), torch.tensor(0), 0, 3), np.random.default_rng(1))
    x = (torch.rand(8, 16, 12, 12) * 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    learned.drop = 0.25
    assert torch.equal(learned(x), fake_quantize(x, learned.grid))  # in eval mode nothing is dropped
    learned.train()
    learned.log_scale.requires_grad_()
    y = learned(x)
    alone = y == x
    assert alone.float().mean() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(y[~alone], fake_quantize(x, learned.grid)[~alone])
    assert not torch.equal(learned(x), y)  # drawn anew
    y.square().sum().backward()
    assert (x.grad[alone] != 0).all()
    drawn, below = dropped(x, 0.5, np.random.default_rng(0))
    assert drawn.shape == (x.numel(),) and (drawn < below).float().mean() == pytest.approx(0.5, abs=0.02)


# The engine ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("granularity", "kind"),
    [("layer", "mixed"), ("block", "mixed"), ("block", "integer"), ("network", "integer")],
)
def test_less_error_than_nearest_rounding_in_every_way(granularity, kind):
    prepared, x = calibrated()
    recipe = Recipe(
        granularity, drop=0.5, ranges=True, scales=True, biases=True, iterations=15, batch_size=8, rate=0.05
    )
    before = {name: layer.clone() for name, layer in prepared.graph_module.state_dict().items()}
    found = reconstruct(prepared, [x], recipe, kind=kind)
    assert all(report.error_after <= report.error_before for report in found.reports)
    assert sum(report.kept for report in found.reports) >= len(found.reports) / 2
    with torch.no_grad():
        wanted = prepared.graph_module(x)
        plain, rescued = (convert(each, kind)(x) for each in (prepared, found.prepared))
    assert (rescued - wanted).square().mean() < (plain - wanted).square().mean()
    for name, tensor in prepared.graph_module.state_dict().items():  # what it was given stays
        assert torch.equal(tensor, before[name])
    assert len(found.reports) == {"layer": 5, "block": 4, "network": 1}[granularity]


def test_bfloat16_while_learning_compiled_or_not_is_about_as_good():
    prepared, x = calibrated()
    recipe = Recipe(drop=0.5, ranges=True, scales=True, iterations=LONG, batch_size=8, rate=0.05)
    nearest = sum(report.error_before for report in reconstruct(prepared, [x], SHORT).reports)
    errors = []
    for each in (recipe, replace(recipe, dtype=torch.bfloat16)):
        found = reconstruct(prepared, [x], each)
        learned = found.prepared.graph_module.state_dict().values()
        assert all(weight.dtype == torch.float32 for weight in learned)
        errors.append(sum(report.error_after for report in found.reports))
    assert errors[1] == pytest.approx(errors[0], rel=0.15)
    assert max(errors) < 0.8 * nearest


def test_a_layer_left_in_float_is_left_alone():
    torch.manual_seed(0)
    x, plain = images(), QConfig(weight=None, activation=None)
    config = QConfig(FEW, Scheme(bits=4, observer="mse"), by_name={"conv1": plain})
    found = reconstruct(calibrate(prepare(randomize(Tiny()), config), [x]), [x], SHORT)
    assert [report.kept for report in found.reports if report.unit == "conv1"] == [False]
    assert any(report.kept for report in found.reports)


def test_two_pairs_of_one_module_have_two_names():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage = nn.ModuleDict({name: nn.Conv2d(3, 3, 1) for name in "abcd"})

        def forward(self, x):
            x = self.stage["a"](x) + self.stage["b"](x)
            return self.stage["c"](x) + self.stage["d"](x)

    assert [unit.name for unit in blocks(fuse(Pairs().eval()).graph)] == ["stage", "stage..stage.d"]


def test_the_result_has_the_learned_integers_in_every_kind():
    prepared, x = calibrated(bits=4)
    found = reconstruct(prepared, [x], SHORT, kind="integer")
    changed = 0
    for name, observer in found.prepared.weights.items():
        layer = found.prepared.graph_module.get_submodule(name)
        grid = observer.qparams()
        q = quantize(layer.weight, grid)
        assert torch.equal(dequantize(q, grid), layer.weight)
        nearest = quantize(prepared.graph_module.get_submodule(name).weight, prepared.weights[name].qparams())
        changed += int((q != nearest).sum())
        assert int((q.int() - nearest.int()).abs().max()) <= 1
        integer = convert(found.prepared, "integer", engine="reference").graph_module.get_submodule(name)
        assert torch.equal(integer.weight, q)
    assert changed > 0


def test_without_activations_and_with_part_of_the_network():
    prepared, x = calibrated(bits=None)
    found = reconstruct(prepared, [x], SHORT, only=["conv3"])
    assert [report.unit for report in found.reports] == ["conv3"]
    for name in ("conv1", "fc"):
        grid = prepared.weights[name].qparams()
        wanted = fake_quantize(prepared.graph_module.get_submodule(name).weight, grid)
        assert torch.equal(found.prepared.graph_module.get_submodule(name).weight, wanted)


def test_no_better_is_put_back():
    prepared, x = calibrated()
    wild = Recipe(iterations=2, rate=50.0, batch_size=4, warm_up=0.9)
    found = reconstruct(prepared, [x], wild)
    lost = [report for report in found.reports if not report.kept]
    assert lost and all(report.error_after == report.error_before for report in lost)
    alone = [report.unit for report in lost if report.unit in prepared.weights]
    assert alone  # units of one layer, which have its name
    for name in alone:
        grid = prepared.weights[name].qparams()
        wanted = fake_quantize(prepared.graph_module.get_submodule(name).weight, grid)
        assert torch.equal(found.prepared.graph_module.get_submodule(name).weight, wanted)


def test_the_same_seed_and_a_stopped_run_that_goes_on(tmp_path):
    prepared, x = calibrated()
    recipe = Recipe(drop=0.5, ranges=True, biases=True, iterations=5, batch_size=8)
    whole = reconstruct(prepared, [x], recipe, store=Store(tmp_path / "whole"))
    again = reconstruct(prepared, [x], recipe)
    other = reconstruct(prepared, [x], recipe, seed=1)
    files = sorted((tmp_path / "whole").iterdir())
    assert len(files) == len(whole.reports)
    files[-1].unlink()
    files[0].write_bytes(b"cut off")  # a damaged file counts as none
    resumed = reconstruct(prepared, [x], recipe, store=Store(tmp_path / "whole"))
    assert len(list((tmp_path / "whole").iterdir())) == len(files)
    for name, tensor in whole.prepared.graph_module.state_dict().items():
        assert torch.equal(tensor, again.prepared.graph_module.state_dict()[name])
        assert torch.equal(tensor, resumed.prepared.graph_module.state_dict()[name])
    for name in whole.prepared.activations:
        assert torch.equal(whole.prepared.qparams(name).scale, resumed.prepared.qparams(name).scale)
    assert [r.error_after for r in whole.reports] != [r.error_after for r in other.reports]
    assert resumed.reports[1] == whole.reports[1] and resumed.minutes > 0  # the seconds it once took


def test_the_exponent_falls_after_the_warm_up():
    recipe = Recipe(iterations=10, warm_up=0.2, beta=(20.0, 2.0))
    assert [recipe.exponent(step) for step in (0, 1)] == [None, None]
    assert recipe.exponent(2) == 20.0 and recipe.exponent(6) == 11.0


def test_mistakes():
    prepared, x = calibrated()
    with pytest.raises(ConfigError, match="no granularity named 'blok'; did you mean 'block'"):
        Recipe("blok")
    assert Recipe(iterations=1000).rates() == (0.01, 0.001) and Recipe(iterations=20).rates()[0] == 0.05
    for wrong in ({"drop": 1.0}, {"warm_up": -0.1}, {"iterations": 0}):
        with pytest.raises(ConfigError):
            Recipe(**wrong)
    with pytest.raises(ConfigError, match="no kind named"):
        reconstruct(prepared, [x], kind="fast")
    with pytest.raises(ConfigError, match="no unit named 'conv9'"):
        reconstruct(prepared, [x], SHORT, only=["conv9"])
    with pytest.raises(ConfigError, match="no batches"):
        reconstruct(prepared, [])
    with pytest.raises(ConfigError, match="not one tensor"):
        correct_bias(prepared, x)
    with pytest.raises(ConfigError, match="learns nothing"):
        Recipe(rounding=False)
    with pytest.raises(ConfigError, match="learned with their rounding"):
        Recipe(rounding=False, ranges=True, scales=True)
    with pytest.raises(NonFiniteError, match="conv1"):
        reconstruct(prepared, [x * float("nan")], SHORT)
    found = reconstruct(prepared, [x], Recipe(iterations=1))
    with pytest.raises(ConfigError, match="learned for 3 bits"):
        found.prepared.weights["conv1"].with_bits(4)


# Bias correction ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixed", "integer"])
def test_corrected_biases_bring_every_channel_mean_back(kind):
    prepared, x = calibrated(bits=4)
    corrected = correct_bias(prepared, [x[:10], x[10:]], kind)
    exact, low = means(prepared.graph_module, x), means(convert(corrected, "simulated"), x)
    plain = means(convert(prepared, "simulated"), x)
    for name, wanted in exact.items():
        assert (plain[name] - wanted).abs().max() > 1e-3
        if kind == "integer":  # its roundings are the simulation's, but for ties in the pooling before fc
            left = (low[name] - wanted).abs().max()
            assert left < (2e-3 if name != "fc" else 0.5 * (plain[name] - wanted).abs().max()), name
    assert torch.equal(corrected.graph_module.conv1.weight, convert(prepared).conv1.quantized_weight())
    layer = prepared.graph_module.conv1
    assert not torch.equal(layer.bias, corrected.graph_module.conv1.bias)
    first = fake_quantize(x, prepared.qparams("input"))
    before = F.conv2d(x, layer.weight, padding=1) - F.conv2d(
        first, corrected.graph_module.conv1.weight, padding=1
    )
    by_hand = layer.bias + before.mean((0, 2, 3))
    assert torch.allclose(corrected.graph_module.conv1.bias, by_hand, atol=1e-5)
    with pytest.raises(ConfigError, match="no batches"):
        correct_bias(prepared, [])


def test_learned_weights_are_corrected_towards_the_network_as_trained():
    """What was learned serves clipped activations: as a float network it is another one."""
    prepared, x = calibrated(bits=3)
    recipe = Recipe(iterations=60, batch_size=8, ranges=True, scales=True, biases=True)
    learned = reconstruct(prepared, [x], recipe, "integer").prepared
    found = correct_bias(learned, [x], "integer", reference=prepared)
    exact, low = means(prepared.graph_module, x), means(convert(found, "simulated"), x)
    alone = means(convert(correct_bias(learned, [x], "integer"), "simulated"), x)
    for name in set(exact) - {"fc"}:
        assert (low[name] - exact[name]).abs().max() < 2e-3
        assert (alone[name] - exact[name]).abs().max() > 2e-2
    itself = correct_bias(prepared, [x], reference=prepared)
    assert torch.equal(itself.graph_module.fc.bias, correct_bias(prepared, [x]).graph_module.fc.bias)
    other, _ = calibrated(bits=3, network=lambda: nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(ConfigError, match="reference is another network"):
        correct_bias(learned, [x], reference=other)


def means(network, x):
    """Mean of every layer's output channels before its ReLU, over all images and pixels."""
    found, hooks = {}, []

    def hear(name, layer, inputs):
        read = inputs[0]
        weight = layer.quantized_weight() if hasattr(layer, "quantized_weight") else layer.weight
        y = (
            layer._conv_forward(read, weight, layer.bias)
            if read.dim() == 4
            else F.linear(read, weight, layer.bias)
        )
        found[name] = y.transpose(0, 1).flatten(1).mean(1)

    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            hooks.append(layer.register_forward_pre_hook(partial(hear, name)))
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return found


def test_a_unit_reads_what_the_rounded_units_before_it_make():
    """Only the classifier learns; before that its error is that of the whole simulated network."""
    prepared, x = calibrated(bits=8)  # with fewer, ties before the classifier's pooling fall either way
    (report,) = reconstruct(prepared, [x], SHORT, kind="integer", only=["fc"]).reports
    with torch.no_grad():
        wanted, low = prepared.graph_module(x), convert(prepared, "simulated")(x)
    whole = float((low - wanted).square().sum() / wanted.square().sum())
    # What passes from unit to unit is kept in half precision.
    assert report.unit == "fc" and report.error_before == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize("granularity", ["layer", "block", "network"])
@pytest.mark.parametrize("kind", ["mixed", "simulated", "integer"])
@pytest.mark.parametrize("ranges", [False, True])
def test_what_a_report_says_is_the_error_of_the_finished_network(granularity, kind, ranges):
    """Nothing that is learned later may move what was judged before."""
    prepared, x = calibrated(bits=3)
    recipe = replace(SHORT, granularity=granularity, ranges=ranges, iterations=30, rate_scales=0.05)
    found = reconstruct(prepared, [x], recipe, kind)
    network, whole = LowBitNetwork(found.prepared, kind), LowBitNetwork(prepared, kind)
    reports = {report.unit: report.error_after for report in found.reports}
    exact = low = x
    of_low, of_whole = (pieces(each.graph, granularity) for each in (found.prepared, prepared))
    for block, origin in zip(of_low, of_whole, strict=True):
        both = zip(split(block, granularity), split(origin, granularity), strict=True)
        for unit, like in both:
            entering = through(network, block, low, until=unit.source if unit is not block else block.source)
            until = like.result if like is not origin else None
            wanted = through(whole, origin, exact, low_bit=False, until=until)
            assert error(network, unit, entering, wanted) == pytest.approx(reports[unit.name], rel=1e-4)
        exact, low = through(whole, origin, exact, low_bit=False), through(network, block, low)


def test_a_float_layer_inside_a_block_gets_no_gradient_and_no_range():
    torch.manual_seed(0)
    x = images()
    config = QConfig(FEW, Scheme(bits=4, observer="mse"), by_name={"conv3": None})
    model = randomize(Tiny()).requires_grad_(False)
    prepared = calibrate(prepare(model, config), [x])
    layer = prepared.graph_module.get_submodule("conv3")
    before = layer.weight.clone()
    found = reconstruct(prepared, [x], replace(SHORT, ranges=True))
    assert torch.equal(found.prepared.graph_module.get_submodule("conv3").weight, before)
    assert all(parameter.grad is None for parameter in prepared.graph_module.parameters())


def test_channels_with_zero_points_of_their_own_have_ends_of_their_own():
    grid = QParams(torch.tensor([0.1, 0.1]), torch.tensor([0, 7], dtype=torch.int32), 0, 7, axis=0)
    weight = torch.tensor([[-0.7, 0.33], [0.7, -0.33]])
    soft = SoftRounding(weight, grid)
    low, high = soft()[0].min(), soft()[1].max()
    assert low >= 0 and high <= 0 and torch.allclose(soft()[0, 1], torch.tensor(0.33), atol=1e-6)


def test_plain_mistakes_are_sentences():
    prepared, x = calibrated()
    with pytest.raises(ConfigError, match="call prepare and calibrate first"):
        reconstruct(randomize(Tiny()), [x], SHORT)
    with pytest.raises(ConfigError, match="no batches"):
        reconstruct(prepared, [x[:0]], SHORT)
    with pytest.raises(ConfigError, match="float32 or torch.bfloat16, not in torch.float16"):
        Recipe(dtype=torch.float16)
    with pytest.raises(ConfigError, match="did you mean 'nearest'"):
        Recipe(start="nearst")
    one = reconstruct(prepared, [x], replace(SHORT, granularity="layer"), only="conv1")
    assert [report.unit for report in one.reports] == ["conv1"]

import copy

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from quantlib.errors import UnsupportedOperatorError
from quantlib.quantization.graph import kind, module_of
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.simulated import SimulatedConv2d
from quantlib.quantization.workflow import calibrate, convert, prepare
from tests.quantization.networks import Spellings, Tiny, randomize

SETTINGS = {
    "w8a8": QConfig(activation=Scheme(observer="minmax")),
    "w4a4": QConfig(Scheme(4, symmetric=True, per_channel=True), Scheme(4, observer="minmax")),
    "per_tensor": QConfig(Scheme(8), Scheme(8, symmetric=True)),
    "weights_only": QConfig(activation=None),
    "output": QConfig(activation=Scheme(), quantize_output=True),
}


class ByHand(fx.Interpreter):
    """The fused network with torch.fake_quantize_* written around every operator."""

    def __init__(self, prepared):
        super().__init__(prepared.graph_module)
        self.prepared, self.grid_of = prepared, {}

    def fake(self, x, qparams):
        low, high = qparams.quant_min, qparams.quant_max
        if qparams.axis is None:
            scale, zero = float(qparams.scale), int(qparams.zero_point)
            return torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high)
        scale, zero = qparams.scale, qparams.zero_point
        return torch.fake_quantize_per_channel_affine(x, scale, zero, qparams.axis, low, high)

    def weight(self, node):
        observer = self.prepared.weights.get(node.target)
        weight = module_of(node).weight
        return weight if observer is None else self.fake(weight, observer.qparams())

    def run_node(self, n):
        module = module_of(n) if n.op == "call_module" else None
        if kind(n) == "conv":
            (x,) = self.fetch_args_kwargs_from_env(n)[0]
            value = F.conv2d(
                x, self.weight(n), module.bias, module.stride, module.padding, module.dilation, module.groups
            )
            value = module.rectified(value)
        elif kind(n) == "linear":
            (x,) = self.fetch_args_kwargs_from_env(n)[0]
            value = module.rectified(F.linear(x, self.weight(n), module.bias))
        else:
            value = super().run_node(n)
        name = "input" if n.op == "placeholder" else n.target
        if kind(n) in ("pool", "flatten"):
            self.grid_of[n] = self.grid_of.get(n.args[0])
        elif n.op != "output":
            observer = self.prepared.activations.get(name)
            self.grid_of[n] = observer.qparams() if observer else None
        grid = self.grid_of.get(n)
        return value if grid is None else self.fake(value, grid)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("network", [Tiny, Spellings])
@torch.no_grad()
def test_bit_equal_to_fake_quantize_by_hand(network, setting):
    prepared = prepare(randomize(network()), SETTINGS[setting])
    calibrate(prepared, [torch.randn(16, 3, 16, 16)])
    x = torch.randn(4, 3, 16, 16) * 1.5
    assert torch.equal(convert(prepared)(x), ByHand(prepared).run(x))


@pytest.fixture
def prepared():
    return calibrate(prepare(randomize(Tiny()), SETTINGS["w8a8"]), [torch.randn(16, 3, 16, 16)])


def test_without_gradients_the_same_logits_and_the_images_untouched(prepared):
    simulated, x = convert(prepared), torch.randn(4, 3, 16, 16)
    kept = x.clone()
    slow = simulated(x)  # torch's own kernel, for the gradients
    with torch.no_grad():
        fast = simulated(x)
    assert torch.equal(slow, fast) and torch.equal(x, kept)
    assert not simulated.get_submodule("input_quantizer").overwrites
    assert simulated.get_submodule("conv1_quantizer").overwrites


def test_prepared_is_left_alone(prepared):
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = prepared.graph_module(x)
        simulated = convert(prepared).train()
        simulated.conv1.weight.zero_()
        assert torch.equal(prepared.graph_module(x), before)


def test_gradients_reach_weights_straight_through(prepared):
    simulated = convert(prepared).train()
    x = torch.randn(4, 3, 16, 16)
    simulated(x).square().sum().backward()
    gradients = {name: p.grad for name, p in simulated.named_parameters()}
    assert all(g is not None and g.abs().sum() > 0 for g in gradients.values()), gradients.keys()
    by_hand = ByHand(prepared)
    by_hand.run(x).square().sum().backward()
    assert torch.allclose(
        prepared.graph_module.conv2.weight.grad, gradients["conv2.weight"], rtol=1e-4, atol=1e-5
    )


def test_training_reduces_the_error_and_eval_sees_the_new_weights(prepared):
    torch.manual_seed(1)
    x = torch.randn(16, 3, 16, 16)
    target = prepared.graph_module(x).detach() + 0.3
    simulated = convert(prepared)
    first = F.mse_loss(simulated(x), target).item()
    optimizer = torch.optim.Adam(simulated.train().parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(simulated(x), target).backward()
        optimizer.step()
    assert F.mse_loss(simulated.eval()(x), target).item() < 0.5 * first


def test_an_evaluation_in_inference_mode_leaves_no_inference_tensor(prepared):
    simulated, x = convert(prepared), torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        simulated(x)
    simulated(x).sum().backward()
    gradients = {name: p.grad for name, p in simulated.named_parameters()}
    assert all((g is not None) == name.endswith("bias") for name, g in gradients.items())  # in eval mode


def test_eval_caches_the_weight_until_it_changes(prepared):
    layer = convert(prepared).get_submodule("conv1")
    assert isinstance(layer, SimulatedConv2d)
    cached = layer.quantized_weight()
    assert layer.quantized_weight() is cached and not cached.requires_grad
    with torch.no_grad():
        layer.weight.mul_(0.5)
    assert not torch.equal(layer.quantized_weight(), cached)
    layer.weight = nn.Parameter(torch.zeros_like(layer.weight))
    assert layer.quantized_weight().abs().max() == 0


@torch.no_grad()
def test_deep_copy_and_state_dict_round_trip(prepared):
    x = torch.randn(2, 3, 16, 16)
    simulated = convert(prepared)
    wanted = simulated(x)
    twin = copy.deepcopy(simulated)
    assert torch.equal(twin(x), wanted)
    for value in twin.state_dict().values():
        value.zero_() if value.is_floating_point() else value.fill_(1)
    assert not torch.equal(twin(x), wanted) and torch.equal(simulated(x), wanted)
    twin.load_state_dict(simulated.state_dict())
    assert torch.equal(twin(x), wanted)
    assert "conv1.weight_quantizer.scale" in simulated.state_dict()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_moves_to_cuda(prepared):
    x = torch.randn(2, 3, 16, 16)
    simulated = convert(prepared)
    wanted = simulated(x)
    assert torch.allclose(simulated.to("cuda")(x.to("cuda")).cpu(), wanted, atol=0.05)


def test_a_simulated_network_is_not_prepared_again(prepared):
    with pytest.raises(UnsupportedOperatorError):
        prepare(convert(prepared, "simulated"))


def test_a_network_made_in_inference_mode_runs_everywhere():
    x = torch.randn(2, 3, 16, 16)
    prepared = calibrate(prepare(Tiny().eval()), [x])
    with torch.inference_mode():
        made = convert(prepared)
        inside = made(x)
    assert torch.equal(made(x), inside) and torch.equal(inside, convert(prepared)(x))


def test_another_scale_is_another_weight():
    x = torch.randn(2, 3, 16, 16)
    simulated = convert(calibrate(prepare(Tiny().eval()), [x]))
    before, layer = simulated(x), next(m for m in simulated.modules() if isinstance(m, SimulatedConv2d))
    layer.weight_quantizer.scale = layer.weight_quantizer.scale * 3
    after = simulated(x)
    assert not torch.equal(after, before)
    simulated.train().eval()
    assert torch.equal(simulated(x), after)

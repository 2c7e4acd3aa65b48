"""Learned grids: torch's learnable kernel as the oracle, and training that pays."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantlib.errors import ConfigError, NotCalibratedError, UnsupportedOperatorError
from quantlib.quantization.graph import fuse
from quantlib.quantization.qat import LearnedGrid, make_trainable, plain, start_grids, trainable_layers
from quantlib.subject.models import build

pytestmark = pytest.mark.usefixtures("one_thread")


def grid_of(bits: int, signed: bool, scale: torch.Tensor) -> LearnedGrid:
    grid = LearnedGrid(bits, signed, None if scale.dim() == 0 else len(scale))
    with torch.no_grad():
        grid.scale.copy_(scale)
    grid.started.fill_(True)
    return grid


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(2, 8), signed=st.booleans(), per_channel=st.booleans(), seed=st.integers(0, 999))
def test_values_and_gradients_equal_torchs_learnable_kernel(bits, signed, per_channel, seed):
    torch.manual_seed(seed)
    x = torch.randn(6, 5, 3) * 3
    scale = torch.rand(6) + 0.1 if per_channel else torch.rand(()) + 0.1
    grid, ours = grid_of(bits, signed, scale), x.clone().requires_grad_()
    step = grid.step().detach().clone().requires_grad_()
    theirs, zero = x.clone().requires_grad_(), torch.zeros_like(step)
    low, high = grid.quant_min, grid.quant_max
    pace = (max(1, scale.numel()) / (x.numel() * high)) ** 0.5
    if per_channel:
        wanted = torch._fake_quantize_learnable_per_channel_affine(theirs, step, zero, 0, low, high, pace)
    else:
        wanted = torch._fake_quantize_learnable_per_tensor_affine(
            theirs, step.reshape(1), zero.reshape(1), low, high, pace
        )
    got = grid(ours)
    weight = torch.randn_like(x)
    (got * weight).sum().backward()
    (wanted * weight).sum().backward()
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grid.scale.grad, step.grad, rtol=2e-3, atol=2e-4)


def test_the_gradient_of_a_scale_by_hand():
    # scale 1, grid 0..3: 0.4 -> 0, 1.6 -> 2, 5 -> 3 (clipped). Slopes: 0 - 0.4, 2 - 1.6, 3.
    grid = grid_of(2, False, torch.tensor(1.0))
    grid(torch.tensor([0.4, 1.6, 5.0])).sum().backward()
    assert float(grid.scale.grad) == pytest.approx((-0.4 + 0.4 + 3) / (3 * 3) ** 0.5, rel=1e-5)


def test_two_signed_bits_are_ternary():
    grid = grid_of(2, True, torch.tensor(0.5))
    assert sorted(set(grid(torch.linspace(-3, 3, 50)).tolist())) == pytest.approx([-0.5, 0, 0.5], abs=1e-6)


def test_a_network_gets_shared_inputs_and_wide_ends():
    model = make_trainable(build("resnet20"), 4, 3)
    layers = trainable_layers(model)
    assert len(layers) == 22
    assert {(each.weight_grid.bits, each.input_grid.bits) for each in layers.values()} == {(4, 3), (8, 8)}
    assert layers["conv1"].weight_grid.bits == layers["fc"].input_grid.bits == 8
    block = model.layer2[0]
    assert block.conv1.input_grid is block.downsample[0].input_grid
    assert block.conv1.input_grid is not block.conv2.input_grid
    with pytest.raises(ConfigError, match="no convolution"):
        make_trainable(nn.Sequential(nn.ReLU()), 4, 4)


class TwoHeads(nn.Module):
    """The last layer reads what another one reads before it."""

    def __init__(self):
        super().__init__()
        self.conv, self.side, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.side(x) + self.last(x)


def test_what_the_last_layer_reads_is_wide_though_another_reads_it_first():
    layers = trainable_layers(make_trainable(TwoHeads(), 4, 3))
    assert layers["side"].input_grid is layers["last"].input_grid
    assert [layer.input_grid.bits for layer in layers.values()] == [8, 8, 8]
    assert {name: layer.weight_grid.bits for name, layer in layers.items()}["side"] == 4


def test_grids_start_and_the_plain_copy_computes_the_same():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16)
    fine = make_trainable(build("resnet20").eval(), 8, 8)
    with pytest.raises(NotCalibratedError, match="start_grids"):
        plain(fine)
    before = build("resnet20").eval()
    before.load_state_dict({k: v for k, v in fine.state_dict().items() if "grid" not in k})
    start_grids(fine, images)
    assert all(bool(layer.input_grid.started) for layer in trainable_layers(fine).values())
    with torch.no_grad():
        exact, got = before(images), fine(images)
        assert float((got - exact).norm() / exact.norm()) < 0.03
        coarse = start_grids(make_trainable(before, 3, 8), images)
        rounded = plain(coarse)
        assert rounded.layer1[0].conv1.weight[0].unique().numel() <= 7
        ends = float((rounded(images) - coarse(images)).norm() / exact.norm())
        assert ends < 0.03 < float((coarse(images) - exact).norm() / exact.norm())


def test_a_negative_value_on_an_unsigned_grid_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(ConfigError, match="put a ReLU before each"):
        start_grids(make_trainable(model, 4, 4), torch.randn(2, 3, 4, 4))


def test_training_moves_weights_and_scales_and_lowers_the_loss():
    torch.manual_seed(1)
    x, wanted = torch.randn(32, 3, 8, 8), torch.randn(32, 4)
    float_model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip
    model = start_grids(make_trainable(float_model, 2, 2, ends_bits=4), x).train()
    scale = model[2].weight_grid.scale.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = (model(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert not torch.equal(scale, model[2].weight_grid.scale)


def test_starting_again_starts_everything_again_and_a_frozen_norm_stays_frozen():
    model = make_trainable(build("resnet20"), 4, 4).train()
    model.bn1.eval()
    x = torch.randn(4, 3, 32, 32)
    start_grids(model, x)
    layer = trainable_layers(model)["layer1.0.conv1"]
    first = [layer.input_grid.scale.detach().clone(), layer.weight_grid.scale.detach().clone()]
    with torch.no_grad():
        layer.input_grid.scale *= 1.3
        layer.weight_grid.scale *= 1.3
    start_grids(model, x)
    assert torch.equal(layer.input_grid.scale, first[0]) and torch.equal(layer.weight_grid.scale, first[1])
    assert not model.bn1.training and model.training and model.layer1.training


class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.c(torch.relu(self.c(input=x)))


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_networks_that_cannot_be_trained_so_are_named_before_the_training():
    with pytest.raises(ConfigError, match="'c' is called twice"):
        make_trainable(CalledTwice(), 4, 4)
    with pytest.raises(UnsupportedOperatorError, match="remove what depends on the data"):
        make_trainable(Branches(), 4, 4)
    with pytest.raises(ConfigError, match="not its fused graph"):
        make_trainable(fuse(nn.Sequential(nn.Conv2d(3, 3, 1)).eval()), 4, 4)

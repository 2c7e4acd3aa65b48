"""Second moments of windows against sums by hand, and that they make low rank better where it counts."""

import pytest
import torch
from torch import nn

from quantlib.compression.factorized import Plan, factorize, factorized
from quantlib.compression.windows import input_sizes, logit_influence, second_moments
from quantlib.errors import ConfigError


def test_moment_of_a_pointwise_layer_is_the_mean_outer_product():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 5, 1))
    x = torch.randn(6, 3, 4, 4)  # 16 places: all are taken
    found = second_moments(model, [(x[:4], None), (x[4:], None)], ["0", "1"])
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 3)
    torch.testing.assert_close(found["0"], pixels.t() @ pixels / len(pixels))
    weight = model[0].weight.detach().flatten(1)
    torch.testing.assert_close(found["1"], weight @ found["0"] @ weight.t())


def test_moment_predicts_the_power_of_the_output():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 7, 3, 2, 1, bias=False)
    x = torch.randn(5, 3, 9, 9)
    moment = second_moments(nn.Sequential(conv), [(x, None)], ["0"])["0"]
    weight = conv.weight.detach().flatten(1)
    power = torch.einsum("oi,ij,oj->o", weight, moment, weight)
    torch.testing.assert_close(power, conv(x).detach().square().mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_outputs_err_least_with_the_moment(rank):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 12, 3, padding=1)
    x = torch.randn(8, 6, 8, 8) * torch.logspace(-1, 1, 6)[:, None, None]  # channels of unlike size
    moment = second_moments(nn.Sequential(conv), [(x, None)], ["0"])["0"]

    def error(split):
        return (split(x) - conv(x)).square().mean().item()

    plain, aware = (factorized(conv, Plan("channel", rank), m) for m in (None, moment))
    assert error(aware) < error(plain)
    # All 64 places are taken, so it is the best that a projection of the outputs can do (PCA, uncentred):
    y = (conv(x) - conv.bias[:, None, None]).detach().transpose(0, 1).flatten(1).double()
    best = torch.linalg.svdvals(y)[rank:].square().sum().item() / y.numel()
    assert error(aware) == pytest.approx(best, rel=1e-3)


def test_full_rank_with_a_moment_is_exact_even_where_inputs_are_dead():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, padding=1)
    x = torch.randn(4, 4, 6, 6)
    x[:, 2] = 0  # a channel that never fires
    model = nn.Sequential(conv)
    moments = second_moments(model, [(x, None)], ["0"])
    same = factorize(model, {"0": Plan("channel", 8)}, moments)
    y = torch.randn(2, 4, 6, 6)  # where it does fire
    torch.testing.assert_close(same(y), model(y), rtol=1e-3, atol=1e-3)


def test_same_seed_same_moments_and_refusals():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    data = [(torch.randn(2, 3, 16, 16), None)]
    first, second = (second_moments(model, data, ["0"])["0"] for _ in range(2))
    assert torch.equal(first, second)
    assert not model[0]._forward_pre_hooks
    for name in ("1", "absent"):
        with pytest.raises(ConfigError, match=f"'{name}' is not a convolution"):
            second_moments(model, data, [name])
    with pytest.raises(ConfigError, match="at least one image"):
        second_moments(model, [], ["0"])
    model.unused = nn.Conv2d(3, 3, 1)
    model.forward = lambda x: model[1](model[0](x))
    with pytest.raises(ConfigError, match="never runs unused"):
        second_moments(model, data, ["0", "unused"])
    model.forward = lambda x: model[1](model[0](x)).flatten(1)
    with pytest.raises(ConfigError, match="do not depend on unused"):
        logit_influence(model, data, ["0", "unused"])


def test_looking_at_sizes_moves_no_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    assert input_sizes(model, torch.randn(1, 3, 8, 8), ["0"]) == {"0": (8, 8)}
    assert model.training and not model[1].running_mean.any()

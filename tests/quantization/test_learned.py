"""What was trained is what runs: learned grids on int8 kernels, integer by integer."""

import pytest
import torch
from torch import nn

from quantlib.errors import NotCalibratedError
from quantlib.quantization.learned import channel_factors, learned_grids
from quantlib.quantization.qat import make_trainable, start_grids, trainable_layers
from quantlib.quantization.workflow import convert
from quantlib.subject.models import build

pytestmark = pytest.mark.usefixtures("one_thread")


def seasoned(name: str = "resnet20") -> nn.Module:
    """A network whose batch norms have statistics, and gains of both signs."""
    model = build(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.0, 1.0)
            nn.init.normal_(module.bias, 0.1, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("weight_bits, activation_bits", [(8, 8), (4, 4), (2, 8)])
def test_kernels_have_the_integers_of_training_and_its_output(weight_bits, activation_bits):
    torch.manual_seed(2)
    images = torch.randn(4, 3, 16, 16)
    model = start_grids(make_trainable(seasoned(), weight_bits, activation_bits), images).eval()
    network = convert(learned_grids(model), "mixed")
    graph = network.graph_module
    signs = set()
    for name, layer in trainable_layers(model).items():
        grid = layer.weight_grid
        step = grid.step().detach().reshape([-1] + [1] * (layer.weight.dim() - 1))
        integers = (grid(layer.weight).detach() / step).round().to(torch.int8)
        runs = graph.get_submodule(name).weight
        same = (runs == integers).flatten(1).all(1)
        turned = (runs == -integers).flatten(1).all(1)
        assert bool((same | turned).all()), name
        signs |= {bool(flag) for flag in same[~(same & turned)].tolist()}
    assert signs == {True, False}
    with torch.no_grad():
        trained, running = model(images), network(images)
    assert float((trained - running).norm() / trained.norm()) < (0.02 if activation_bits == 8 else 0.25)


def test_factors_are_what_folding_did():
    before = torch.tensor([[1.0, -2.0], [0.0, 0.0], [3.0, 0.5]])
    after = before * torch.tensor([[0.5], [7.0], [-2.0]])
    assert channel_factors(before, after).tolist() == [0.5, 1.0, -2.0]


def test_grids_must_have_been_started():
    with pytest.raises(NotCalibratedError, match="start_grids"):
        learned_grids(make_trainable(seasoned(), 4, 4))

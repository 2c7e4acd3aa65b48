"""Muon: singular values near one, directions kept, one step by its formula; who gets which optimizer."""

import pytest
import torch
from torch import nn

from quantlib.errors import ConfigError
from quantlib.subject.optimizers import Muon, Optimizers, orthogonalize
from quantlib.subject.recipe import Recipe


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (8, 8)])
def test_singular_values_go_to_one_and_their_directions_stay(shape: tuple[int, int]) -> None:
    size = min(shape)
    u, v = (torch.linalg.qr(torch.randn(side, size)).Q for side in shape)
    matrix = u @ torch.diag(torch.linspace(1.0, 5.0, size)) @ v.T
    seen = u.T @ orthogonalize(matrix).float() @ v
    assert seen.diagonal().min() > 0.6 and seen.diagonal().max() < 1.3
    assert (seen - torch.diag(seen.diagonal())).abs().max() < 0.05  # bfloat16


def test_a_step_of_muon_by_its_formula() -> None:
    weight = nn.Parameter(torch.randn(6, 2, 3, 3))
    muon = Muon([weight], lr=0.1, momentum=0.5, weight_decay=0.2)
    expected, velocity = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(2):
        weight.grad = torch.randn_like(weight)
        velocity = 0.5 * velocity + weight.grad
        direction = orthogonalize((weight.grad + 0.5 * velocity).flatten(1)).float().view_as(weight)
        expected = (1 - 0.1 * 0.2) * expected - 0.1 * direction
        muon.step()
    assert torch.allclose(weight, expected, atol=1e-5)


def test_tall_matrices_take_larger_steps() -> None:
    """12 outputs, 4 inputs: the step is sqrt(12 / 4) times as long, as the source has it."""
    weight = nn.Parameter(torch.randn(12, 1, 2, 2))
    before, weight.grad = weight.detach().clone(), torch.randn(12, 1, 2, 2)
    direction = orthogonalize((1.5 * weight.grad).flatten(1)).float().view_as(weight)
    Muon([weight], lr=0.1, momentum=0.5, weight_decay=0.0).step()
    assert torch.allclose(weight, before - 0.1 * 3**0.5 * direction, atol=1e-5)


def test_filters_go_to_muon_and_nothing_of_norms_and_biases_decays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    told = {"optimizer": "muon", "weight_decay": 0.1, "muon_weight_decay": 0.03}
    recipe = Recipe(name="x", model="x", stages=((1, 8),), **told)
    (sgd, _), (muon, peak) = Optimizers(model, recipe).parts
    assert [p is model[0].weight for p in muon.param_groups[0]["params"]] == [True]
    assert peak == recipe.muon_learning_rate and muon.param_groups[0]["weight_decay"] == 0.03
    heads, free = sgd.param_groups
    assert heads["params"] == [model[3].weight] and heads["weight_decay"] == 0.1
    assert len(free["params"]) == 4 and free["weight_decay"] == 0.0
    with pytest.raises(ConfigError, match="choose sgd or muon"):
        Optimizers(model, Recipe(name="x", model="x", stages=((1, 8),), optimizer="adam"))

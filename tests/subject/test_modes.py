"""Eval mode for a while: a frozen batch norm stays frozen, whoever looks at the network."""

import pytest
import torch

from quantlib.compression.costs import macs
from quantlib.compression.distillation import teacher_logits
from quantlib.subject import data
from quantlib.subject.compiled import compiled
from quantlib.subject.evaluation import evaluate
from quantlib.subject.models import build
from quantlib.subject.modes import answering


def frozen():
    """A network that trains, but for one batch norm; its modes."""
    model = build("resnet20").train()
    model.bn1.eval()
    return model, [module.training for module in model.modules()]


@pytest.mark.parametrize("look", [
    lambda model: evaluate(model, data.load("test").take(4)),
    lambda model: teacher_logits(model, data.load("test").take(4)),
    lambda model: macs(model, torch.zeros(1, 3, 32, 32)),
    lambda model: compiled(model, torch.device("cpu"), enabled=True),
], ids=["evaluate", "teacher_logits", "macs", "compiled"])  # fmt: skip
def test_whoever_looks_leaves_every_mode_as_it_was(look, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    model, modes = frozen()
    statistics = model.bn1.running_mean.clone()
    look(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.bn1.running_mean, statistics)


def test_an_error_puts_the_modes_back_as_well():
    model, modes = frozen()
    with pytest.raises(ZeroDivisionError), answering(model):
        assert not any(module.training for module in model.modules())
        1 / 0  # noqa: B018
    assert [module.training for module in model.modules()] == modes

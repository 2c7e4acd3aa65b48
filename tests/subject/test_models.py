"""Networks: published parameter counts, shapes, traceability."""

import pytest
import torch
import torchvision
from torch import fx

from quantlib.errors import ConfigError
from quantlib.subject.models import MODELS, build


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet50", 23_520_842), ("resnet20", 272_474), ("squeezenet", 730_570)]
)
def test_parameter_counts(name: str, parameters: int) -> None:
    assert sum(p.numel() for p in build(name).parameters()) == parameters


@pytest.mark.parametrize("name", sorted(MODELS))
def test_traced_model_equals_the_model(name: str) -> None:
    torch.manual_seed(0)
    model, x = build(name).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(model)(x), model(x))
        assert model(x).shape == (2, 10)


def test_resnet50_differs_from_torchvision_in_the_stem_and_the_head_alone() -> None:
    ours = {k: v.shape for k, v in build("resnet50").state_dict().items()}
    theirs = {k: v.shape for k, v in torchvision.models.resnet50().state_dict().items()}
    assert list(ours) == list(theirs)
    assert {k for k in ours if ours[k] != theirs[k]} == {"conv1.weight", "fc.weight", "fc.bias"}


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="resnet20, resnet50, squeezenet"):
        build("resnet18")

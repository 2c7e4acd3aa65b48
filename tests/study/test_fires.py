"""SqueezeNet's variants: weights counted by hand, poolings where they belong, runs that go on."""

import pytest
import torch
from torch import fx, nn

from quantlib.compression.costs import macs
from quantlib.errors import ConfigError
from quantlib.study.fires import VARIANTS, train_variant, train_variants, trained, variant
from quantlib.subject import data
from quantlib.subject.models import FIRES
from quantlib.subject.recipe import Recipe


def filters(one_by_one, squeeze, late):
    """Weights of all convolutions, and multiply-adds, from the paper's description."""
    weights, side, width = 3 * 9 * 64 + 512 * 10, 32, 64
    macs = 3 * 9 * 64 * 32 * 32
    for place, (few, out) in enumerate(FIRES):
        side //= 2 if place in ((2, 4) if late else (0, 2)) else 1
        entering = few if squeeze else width
        mean = 5 if one_by_one else 9  # half of the filters 1x1, half 3x3: (1 + 9) / 2
        fire = (width * few if squeeze else 0) + entering * out * mean
        weights, macs, width = weights + fire, macs + fire * side * side, out
    return weights, macs + 512 * 10 * side * side


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_and_multiply_adds_by_hand(name):
    model = variant(name)
    weights, multiply_adds = filters(**VARIANTS[name])
    assert sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Conv2d)) == weights
    assert macs(model, torch.zeros(3, 32, 32)).macs == multiply_adds


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_can_be_traced(name):
    model, x = variant(name).eval(), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(model)(x), model(x))


def test_an_unknown_variant():
    with pytest.raises(ConfigError, match="plain"):
        variant("plane")


def test_variants_side_by_side_are_those_trained_alone(tmp_path, capsys):
    images = data.load("calibration").take(32)
    recipe = Recipe(name="tiny", model="squeezenet", stages=((1, 8),), batch_size=16, learning_rate=0.01)
    names = ["squeezenet", "with_squeeze"]
    found = train_variants(names, recipe, images, images, tmp_path / "several", workers=2)
    assert list(found) == names and {each.step for each in found.values()} == {2}
    assert capsys.readouterr().out.count("trained in") == 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = train_variant("squeezenet", recipe, images, images, tmp_path / "alone")
    torch.set_num_threads(threads)
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(trained(found["squeezenet"])(x), trained(alone)(x), atol=1e-5)


def test_a_finished_run_is_only_loaded(tmp_path, capsys):
    images = data.load("calibration").take(32)
    recipe = Recipe(name="tiny", model="squeezenet", stages=((2, 8),), batch_size=16, learning_rate=0.01)
    first = train_variant("with_squeeze", recipe, images, images, tmp_path)
    again = train_variant("with_squeeze", recipe, images, images, tmp_path)
    assert first.step == again.step == 4 and again.seconds == first.seconds
    assert len((tmp_path / "with_squeeze" / "log.csv").read_text().splitlines()) == 3
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(trained(first)(x), trained(again)(x))
    assert "epoch" not in capsys.readouterr().out
    torch.manual_seed(5)  # whatever was drawn before, a variant starts from the same weights
    other = train_variant("with_squeeze", recipe, images, images, tmp_path / "other")
    assert torch.equal(trained(first)(x), trained(other)(x))

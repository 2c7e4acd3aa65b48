"""A network in pieces: one after the other they are the network, and they are its own modules."""

import pytest
import torch
from torch import nn

from quantlib.compression.factorized import Plan, factorize
from quantlib.compression.pieces import pieces
from quantlib.errors import ConfigError
from quantlib.subject.models import build

pytestmark = pytest.mark.usefixtures("one_thread")
DEPTHS = enumerate((3, 4, 6, 3), 1)
BLOCKS = [f"layer{stage}.{block}.conv1" for stage, count in DEPTHS for block in range(count)]
BLOCKS = ["conv1", *BLOCKS, "fc"]


class Overwriting(nn.Module):
    """A chain whose ReLU overwrites what the piece before it made, had the cut been before the ReLU."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        return self.second(torch.relu_(self.first(x)))


class Fork(nn.Module):
    """Behind its ReLU another layer still reads what came before it: no place to cut."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        before = self.first(x)
        after = torch.relu(before)
        return self.second(before) + self.third(after)


def one_after_the_other(chain, x):
    for piece in chain.values():
        x = piece(x)
    return x


@pytest.mark.parametrize("name", ["resnet20", "resnet50", "squeezenet"])
def test_the_pieces_one_after_the_other_are_the_network(name):
    model, x = build(name).eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(one_after_the_other(pieces(model), x), model(x))


def test_no_cut_where_two_tensors_are_still_read():
    model, x = Fork(), torch.randn(2, 3, 4, 4)
    chain = pieces(model)
    assert list(chain) == ["first", "second"]
    assert torch.equal(one_after_the_other(chain, x), model(x))


def test_a_resnet_falls_into_its_blocks():
    assert list(pieces(build("resnet50"))) == BLOCKS


def test_each_weight_is_in_one_piece_and_is_the_networks_own():
    model = build("resnet50")
    found = [weight for piece in pieces(model).values() for weight in piece.parameters()]
    assert {id(weight) for weight in found} == {id(weight) for weight in model.parameters()}
    assert len(found) == len(list(model.parameters()))


def test_a_piece_overwrites_nothing_that_it_was_given():
    chain, x = pieces(Overwriting()), torch.randn(2, 3, 8, 8)
    assert list(chain) == ["first", "second"]
    between = chain["first"](x)
    before = between.clone()
    chain["second"](between)
    assert torch.equal(between, before)


def test_a_network_whose_layers_were_split_falls_into_the_same_pieces():
    model = build("resnet20").eval()
    thin = factorize(model, {"conv1": Plan("spatial", 3), "layer2.0.conv1": Plan("tucker2", (4, 4))})
    chain, x = pieces(thin, like=list(pieces(model))), torch.randn(2, 3, 16, 16)
    assert list(chain) == list(pieces(model))
    with torch.no_grad():
        assert torch.equal(one_after_the_other(chain, x), thin(x))


def test_other_blocks_are_refused():
    with pytest.raises(ConfigError, match="ResNet20 does not fall into the pieces conv1, layer1.0.conv1"):
        pieces(build("resnet20"), like=BLOCKS)


def test_a_network_without_layers_is_refused():
    with pytest.raises(ConfigError, match="Sequential has no layer"):
        pieces(nn.Sequential(nn.ReLU()))

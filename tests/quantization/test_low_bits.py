import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from quantlib.errors import ConfigError
from quantlib.quantization.graph import fuse
from quantlib.quantization.low_bits import counts, low_bit_qconfig, weight_scheme
from quantlib.quantization.workflow import prepare
from tests.quantization.networks import Tiny, randomize


@pytest.fixture
def graph():
    return fuse(randomize(Tiny()))


def widths(graph, *args, **options):
    prepared = prepare(graph, low_bit_qconfig(graph.graph, *args, ratios=5, **options))
    return (
        {name: observer.bits for name, observer in prepared.weights.items()},
        {name: observer.bits for name, observer in prepared.activations.items()},
    )


def test_one_width_for_all_and_the_two_conventions(graph):
    weights, activations = widths(graph, 3, 4)
    assert weights == {"conv1": 8, "conv2": 3, "shortcut": 3, "conv3": 3, "fc": 8}
    # The classifier reads the last add, through two poolings that keep its grid.
    assert {name for name, bits in activations.items() if bits == 8} == {"input", "add_1"}
    assert set(activations.values()) == {4, 8}
    weights, activations = widths(graph, 3, 4, ends="same")
    assert set(weights.values()) == {3} and set(activations.values()) == {4}


def test_a_width_for_each_and_float(graph):
    weights, activations = widths(graph, {"conv1": 8, "conv3": 2}, 32, ends="same")
    assert weights == {"conv1": 8, "conv3": 2} and not activations
    weights, activations = widths(graph, 4, {"input": 8, "conv1": 5}, ends="same")
    assert len(weights) == 5 and activations == {"input": 8, "conv1": 5}
    weights, activations = widths(graph, 4, 32)  # ends at 8 bits do not bring activations back
    assert not activations


def test_all_integers_are_used_below_eight_bits():
    assert [weight_scheme(bits).observer_instance().quant_min for bits in (8, 4, 2)] == [-127, -8, -2]


def test_counts_against_torchs_flop_counter(graph):
    x = torch.randn(2, 3, 16, 16)
    found = counts(graph, x)
    with FlopCounterMode(display=False) as flops:
        graph(x[:1])
    assert 2 * sum(found.macs.values()) == flops.get_total_flops()
    layers = ("conv1", "conv2", "shortcut", "conv3", "fc")
    assert found.weights == {name: graph.get_submodule(name).weight.numel() for name in layers}
    assert found.activations["input"] == 3 * 16 * 16 and found.activations["conv1"] == 8 * 16 * 16


def test_mistakes(graph):
    with pytest.raises(ConfigError, match="no ends named '9'"):
        low_bit_qconfig(graph.graph, 4, 4, ends="9")
    with pytest.raises(ConfigError, match="no layer named 'conv9'"):
        low_bit_qconfig(graph.graph, {"conv9": 4}, 4)


def test_the_grid_and_the_observers_are_those_asked_for(graph):
    narrow = [weight_scheme(bits, narrow=True).observer_instance().quant_min for bits in (8, 3, 2)]
    assert narrow == [-127, -3, -1]
    plain = prepare(graph, low_bit_qconfig(graph.graph, 3, 4, ratios=5))
    asked = {"narrow": True, "weight_observer": "minmax", "observer": "entropy"}
    other = prepare(graph, low_bit_qconfig(graph.graph, 3, 4, **asked))
    made = [
        {type(each).__name__ for each in side.values()}
        for prepared in (plain, other) for side in (prepared.weights, prepared.activations)
    ]  # fmt: skip
    assert made == [{"MeanSquaredErrorObserver"}, {"AciqObserver"}, {"MinMaxObserver"}, {"EntropyObserver"}]
    assert plain.weights["conv2"].quant_min == -4 and other.weights["conv2"].quant_min == -3

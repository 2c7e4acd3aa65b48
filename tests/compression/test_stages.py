"""The paper's table: a layer computed by hand, and sizes that add up."""

import numpy as np
import pytest
import torch

from quantlib.compression.huffman import entropy_bits
from quantlib.compression.stages import stages_of, table
from quantlib.errors import ConfigError
from quantlib.study.coders import ans_bytes


def test_the_papers_figure_by_hand():
    """Sixteen weights, three left, distances of three bits: one filler, four entries, two values and zero."""
    weight = torch.zeros(16)
    weight[[1, 4, 15]] = torch.tensor([3.4, 0.9, 3.4])
    found = stages_of("layer", weight, index_bits=3)
    assert (found.weights, found.left, found.fillers) == (16, 3, 1)
    assert found.weight_bits == 2 and found.pruned == 4 * (32 + 3)
    assert found.shared == 4 * (2 + 3) + 3 * 32
    # 3.4 twice, 0.9 and the filler once: 1 + 1 + 2 + 2 bits. Zeros before: 1, 2, 7, 2.
    assert found.words_weight == 6 and found.words_index == 6
    # A codebook of three float32; the code of three values takes one byte, that of eight distances three.
    assert found.overhead == 3 * 32 + 8 * (1 + 3) and found.coded == 6 + 6 + 128
    assert found.columns["left_percent"] == pytest.approx(18.75)
    assert found.columns["weight_bits_huffman"] == found.columns["index_bits_huffman"] == 2.0
    assert found.columns["pruned_percent"] == 100 * 140 / 512
    assert found.columns["shared_percent"] == 100 * 116 / 512
    assert found.columns["coded_percent"] == 100 * (12 + 128) / 512


def pruned(density, values, n=20_000, seed=0):
    rng = np.random.default_rng(seed)
    weight = np.where(rng.random(n) < density, rng.choice(np.linspace(-1, 1, values), n), 0)
    return torch.from_numpy(weight.astype(np.float32))


@pytest.mark.parametrize("density", [0.03, 0.1, 0.5])
def test_stages_shrink_and_the_bound_holds(density):
    found = stages_of("layer", pruned(density, 8))
    assert 32 * found.weights > found.pruned > found.shared > found.coded - found.overhead > found.bound
    assert found.coded - found.overhead < 1.05 * found.bound
    every = [stages_of("layer", pruned(density, 8), bits).shared for bits in range(2, 11)]
    assert found.shared == min(every)


def test_total_adds_up():
    weights = {"a": pruned(0.1, 4), "b": pruned(0.3, 16, seed=1)}
    rows = table(weights)
    assert [row.name for row in rows] == ["a", "b", "all layers"]
    assert rows[2].coded == rows[0].coded + rows[1].coded and rows[2].weight_bits == 5
    for name in ("weights", "left", "fillers", "overhead", "pruned", "shared", "bound", "words_index"):
        assert getattr(rows[2], name) == getattr(rows[0], name) + getattr(rows[1], name)


def test_dense_layers_have_no_fillers_and_wild_ones_are_refused():
    found = stages_of("layer", torch.tensor([1.0, 2.0, 1.0, 1.0]))
    assert found.fillers == 0 and found.left == 4 and found.weight_bits == 1
    nothing = stages_of("layer", torch.zeros(10))
    assert nothing.left == 0 and nothing.coded == nothing.overhead
    with pytest.raises(ConfigError, match="share them"):
        stages_of("layer", torch.randn(70_000))


def test_ans_is_a_hair_above_the_entropy():
    pytest.importorskip("constriction")
    symbols = np.random.default_rng(0).geometric(0.4, 50_000)
    bound = entropy_bits(np.bincount(symbols))
    assert bound <= 8 * ans_bytes(symbols) < 1.002 * bound + 64
    assert ans_bytes([3, 3, 3]) == 0


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_kinds_of_floats_are_taken_as_float32(kind):
    weight = torch.tensor([0.0, 0.5, 0.5, -1.0, 0.0, 0.25])
    assert stages_of("a", weight.to(kind)) == stages_of("a", weight)

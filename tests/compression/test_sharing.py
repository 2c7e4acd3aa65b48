"""One-dimensional k-means against brute force, scipy, and its own optimum."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans2

from quantlib.compression.sharing import (
    STARTS,
    density,
    kmeans,
    linear,
    nearest,
    optimum,
    plus_plus,
    share,
    squared_error,
)
from quantlib.errors import ConfigError, NonFiniteError

NUMBERS = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=9)


def best_of_all(values, clusters):
    """Least squared error over all ways to cut the sorted values into intervals."""
    ordered = np.sort(values)
    cuts = combinations(range(1, len(ordered)), min(clusters, len(ordered)) - 1)
    return min(sum(float(np.square(p - p.mean()).sum()) for p in np.split(ordered, cut)) for cut in cuts)


@settings(deadline=None, max_examples=150)
@given(NUMBERS, st.integers(1, 4))
def test_dynamic_programming_finds_the_best_cut(values, clusters):
    centroids = optimum(values, clusters)
    assert len(centroids) <= clusters
    assert squared_error(values, centroids) == pytest.approx(best_of_all(values, clusters), abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(NUMBERS, st.integers(1, 5), st.sampled_from(sorted(STARTS)), st.integers(0, 9))
def test_kmeans_never_gets_worse_and_never_beats_the_optimum(values, clusters, start, seed):
    begin = STARTS[start](values, clusters, seed)
    errors = [squared_error(values, kmeans(values, begin, n)) for n in range(6)]
    assert all(b <= a + 1e-9 for a, b in zip(errors, errors[1:], strict=False))
    assert (
        squared_error(values, kmeans(values, begin))
        >= squared_error(values, optimum(values, clusters)) - 1e-9
    )


def test_scipy_ends_in_the_same_centroids():
    values = np.random.default_rng(0).standard_normal(3000)
    for start in (linear, density):
        begin = start(values, 8)
        theirs, labels = kmeans2(values[:, None], begin[:, None], iter=300, minit="matrix", missing="raise")
        ours = kmeans(values, begin)
        assert ours == pytest.approx(np.sort(theirs[:, 0]), abs=1e-8)
        assert np.array_equal(nearest(values, ours), labels)


def test_kmeans_goes_on_until_nothing_moves():
    values = np.random.default_rng(0).laplace(size=20_000)
    begin = linear(values, 64)
    ours = kmeans(values, begin)
    assert squared_error(values, kmeans(values, begin, 100)) > 1.05 * squared_error(values, ours)
    place = nearest(values, ours)
    means = [values[place == j].mean() if (place == j).any() else ours[j] for j in range(64)]
    assert ours == pytest.approx(np.array(means), abs=1e-9)


def test_optimum_of_a_small_layer_is_near_the_best_start():
    weight = np.random.default_rng(1).standard_normal(1728) * 0.1
    best = squared_error(weight, optimum(weight, 16))
    errors = {
        name: squared_error(weight, kmeans(weight, start(weight, 16), 1000)) for name, start in STARTS.items()
    }
    assert best <= min(errors.values()) < 1.1 * best


def test_starts():
    values = [0.0, 1.0, 2.0, 3.0, 100.0]
    assert linear(values, 3).tolist() == [0.0, 50.0, 100.0]
    assert density(values, 1).tolist() == [2.0]
    assert 100.0 in plus_plus(values, 2, seed=0)
    assert plus_plus([1.0, 1.0], 3).tolist() == [1.0, 1.0, 1.0]
    assert density(np.arange(101), 4).tolist() == [12.5, 37.5, 62.5, 87.5]
    heaps = [*np.arange(5) * 1e-3, *100 + np.arange(5) * 1e-3, *1000 + np.arange(5) * 1e-3]
    for seed in range(50):  # the squared distance to the nearest: nobody is chosen twice from one heap
        assert plus_plus(heaps, 3, seed).round().tolist() == [0, 100, 1000]
    assert nearest([0.5, 1.5], [0.0, 1.0, 2.0]).tolist() == [0, 1]  # of two equally near, the lower


def test_zeros_stay_zero_and_cost_no_cluster():
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3) * (torch.rand(8, 4, 3, 3) > 0.7)
    found = share(weight, 4)
    assert found.weight.shape == weight.shape and found.weight.dtype == torch.float32
    assert torch.equal(found.weight == 0, weight == 0)
    assert found.codebook[0] == 0 and len(found.codebook) == 5
    for value in found.codebook[1:]:
        assert weight[found.weight == value].double().mean().item() == pytest.approx(value.item(), abs=1e-6)
    assert torch.equal(share(torch.zeros(3, 3), 4).weight, torch.zeros(3, 3))
    few = share(torch.tensor([1.0, 2.0, 2.0]), 16)
    assert few.weight.tolist() == [1.0, 2.0, 2.0] and few.codebook.tolist() == [1.0, 2.0]


def test_wrong_use_is_named():
    with pytest.raises(ConfigError, match="choose one of linear, density, plus_plus"):
        share(torch.ones(2), 2, start="random")
    with pytest.raises(ConfigError, match="at least 1"):
        share(torch.ones(2), 0)
    with pytest.raises(NonFiniteError):
        share(torch.tensor([1.0, float("nan")]), 2)
    with pytest.raises(ConfigError, match="no values"):
        optimum([], 2)
    with pytest.raises(ConfigError, match="kmeans"):
        optimum(np.zeros(4001), 2)

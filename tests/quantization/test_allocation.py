from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from quantlib.errors import ConfigError
from quantlib.quantization.allocation import allocate, average_bits, bit_operations, total

BITS = (2, 3, 4, 8)


def tables(counts, costs):
    sizes = {f"l{k}": {bits: count * bits for bits in BITS} for k, count in enumerate(counts)}
    return {f"l{k}": dict(zip(BITS, row, strict=True)) for k, row in enumerate(costs)}, sizes


def by_trying_all(costs, sizes, budget):
    """The least cost, by every combination."""
    every = (dict(zip(costs, bits, strict=True)) for bits in product(*costs.values()))
    return min((total(costs, each) for each in every if total(sizes, each) <= budget), default=None)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.lists(st.floats(-5, 20), min_size=4, max_size=4)),
        min_size=1, max_size=5,
    ),
    st.integers(0, 900),
)  # fmt: skip
def test_never_worse_than_any_other_that_fits(layers, budget):
    costs, sizes = tables([count for count, _ in layers], [row for _, row in layers])
    wanted = by_trying_all(costs, sizes, budget)
    if wanted is None:
        with pytest.raises(ConfigError, match="Even the fewest bits"):
            allocate(costs, sizes, budget)
        return
    chosen = allocate(costs, sizes, budget)
    assert total(sizes, chosen) <= budget
    assert total(costs, chosen) == pytest.approx(wanted, abs=1e-9)


def by_milp(costs, sizes, budget):
    """The same problem, handed to HiGHS."""
    names = list(costs)
    c = np.array([costs[name][bits] for name in names for bits in BITS])
    size = np.array([sizes[name][bits] for name in names for bits in BITS], float)
    one_each = np.kron(np.eye(len(names)), np.ones(len(BITS)))
    found = milp(
        c, integrality=np.ones_like(c), bounds=(0, 1), options={"mip_rel_gap": 0},
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(size, 0, budget)],
    )  # fmt: skip
    assert found.success
    return found.fun


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(3))
def test_a_network_of_54_layers_against_an_integer_program(seed):
    rng = np.random.default_rng(seed)
    counts = 64 * rng.integers(20, 3000, 54)
    costs, sizes = tables(counts.tolist(), (rng.random((54, 1)) * 4.0 ** -np.array(BITS)).tolist())
    budget = int(4 * counts.sum())
    chosen = allocate(costs, sizes, budget)
    assert total(sizes, chosen) <= budget and len(set(chosen.values())) > 1
    assert total(costs, chosen) == pytest.approx(by_milp(costs, sizes, budget), rel=1e-6)
    coarse = allocate(costs, sizes, budget, cells=5000)
    assert total(sizes, coarse) <= budget
    assert total(costs, chosen) <= total(costs, coarse) < 1.05 * total(costs, chosen)


def test_the_same_cost_everywhere_is_uniform_and_more_budget_never_hurts():
    costs, sizes = tables([10, 10, 10], [[8.0, 4.0, 2.0, 0.0]] * 3)
    assert set(allocate(costs, sizes, 120).values()) == {4}
    least = [total(costs, allocate(costs, sizes, budget)) for budget in range(60, 260, 10)]
    assert least == sorted(least, reverse=True) and least[-1] == 0


def test_counts():
    assert average_bits({"a": 1, "b": 3}, {"a": 8, "b": 4}) == 5.0
    assert bit_operations({"a": 10}, {"a": 4}, {"a": 2}) == 80


def test_mistakes():
    costs, sizes = tables([10], [[1.0, 1.0, 1.0, 1.0]])
    with pytest.raises(ConfigError, match="same layers and the same widths"):
        allocate(costs, {"l0": {2: 20}}, 100)
    with pytest.raises(ConfigError, match="needs layers"):
        allocate({}, {}, 100)
    with pytest.raises(ConfigError, match="whole numbers"):
        allocate(costs, {"l0": dict.fromkeys(BITS, 1.5)}, 100)
    with pytest.raises(ConfigError, match="not a number"):
        allocate({"l0": dict.fromkeys(BITS, float("nan"))}, sizes, 100)


def test_whole_numbers_may_be_written_as_floats():
    costs, sizes = {"a": {4: 1.0, 8: 0.0}}, {"a": {4: 40.0, 8: 80.0}}
    assert allocate(costs, sizes, budget=79.0) == {"a": 4}


def test_a_layer_may_have_more_choices_than_a_byte_counts():
    costs = {"a": {bits: float(1000 - bits) for bits in range(1, 601)}}
    sizes = {"a": {bits: bits for bits in range(1, 601)}}
    assert allocate(costs, sizes, budget=555) == {"a": 555}


def test_a_budget_that_is_met_but_not_on_these_cells_says_so():
    sizes = {"a": {2: 2_000_003}, "b": {2: 2_000_033}}
    costs = {"a": {2: 1.0}, "b": {2: 1.0}}
    with pytest.raises(ConfigError, match="raise cells or the budget"):
        allocate(costs, sizes, 4_000_036, cells=1000)
    assert allocate(costs, sizes, 4_000_036, cells=5_000_000) == {"a": 2, "b": 2}
    with pytest.raises(ConfigError, match="at no finite cost"):
        allocate({"a": {2: float("inf")}}, {"a": {2: 2}}, 100)
    with pytest.raises(ConfigError, match="whole numbers"):
        allocate({"a": {2: 1.0}}, {"a": {2: 2}}, float("inf"))
    with pytest.raises(ConfigError, match="cells must be 1 or more"):
        allocate({"a": {2: 1.0}}, {"a": {2: 2}}, 100, cells=0)

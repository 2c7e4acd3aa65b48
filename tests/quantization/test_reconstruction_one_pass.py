"""A formula in one pass is the formula, and a machine without a compiler only loses time."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional as F

from quantlib.quantization.reconstruction import one_pass as module
from quantlib.quantization.reconstruction.one_pass import compiling, dense, flat, one_pass, same_order


def formula(x, other, share):
    return torch.where(x > 0, x * share, other.float()) + F.relu(other)


@pytest.fixture(autouse=True)
def state():
    """A test that finds no compiler must not switch compilation off for those that come after."""
    kept = dict(module._state)
    yield
    module._state.update(kept)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
def test_compiled_for_any_length_it_is_the_formula_bit_for_bit():
    fast, share, graphs = one_pass(formula), torch.tensor(0.25), counters["stats"]
    before = graphs["unique_graphs"]
    with compiling():
        for count in (1000, 4096, 777):
            x, other = torch.randn(count), torch.randn(count)
            assert torch.equal(fast(x, other, share), formula(x, other, share))
        assert graphs["unique_graphs"] == before + 1  # one program for all lengths
        x = torch.randn(100, requires_grad=True)
        fast(x, x, share).sum().backward()
    own = x.detach().requires_grad_()
    formula(own, own, share).sum().backward()
    assert torch.equal(x.grad, own.grad)
    before = graphs["unique_graphs"]
    fast(x.double(), x, share)
    assert graphs["unique_graphs"] == before  # outside, nothing is compiled


def test_compiling_ends_with_its_block_and_can_be_left_out():
    with pytest.raises(KeyError), compiling():
        raise KeyError
    assert not module._state["wanted"]
    with compiling(), compiling(False):
        assert not module._state["wanted"]


def test_without_a_compiler(monkeypatch):
    def broken(function, **options):
        def call(*args):
            raise OSError("no compiler")

        return call

    monkeypatch.setitem(module._state, "works", True)
    monkeypatch.setattr(torch, "compile", broken)
    x, share = torch.randn(9), torch.tensor(0.5)
    fast = one_pass(formula)
    with compiling(), pytest.warns(UserWarning, match="no torch.compile here .OSError"):
        assert torch.equal(fast(x, x, share), formula(x, x, share))
    with compiling():  # says it once
        assert torch.equal(fast(x, x, share), formula(x, x, share))


def test_orders_of_memory():
    plain = torch.randn(2, 3, 4, 5)
    last = plain.contiguous(memory_format=torch.channels_last)
    assert dense(plain) is plain and dense(last) is last
    gaps = torch.randn(2, 3, 4, 10)[..., ::2]
    assert dense(gaps).is_contiguous() and torch.equal(dense(gaps), gaps)
    assert torch.equal(flat(last), last.permute(0, 2, 3, 1).reshape(-1))
    assert flat(last).data_ptr() == last.data_ptr() and flat(last)._base is None
    moved = same_order(plain, last)
    assert moved.stride() == last.stride() and torch.equal(moved, plain)
    assert same_order(last, moved) is last

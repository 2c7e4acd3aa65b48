import numpy as np
import pytest
import torch

from quantlib.errors import ConfigError
from quantlib.quantization.affine import quantize
from quantlib.quantization.graph import fuse
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.study import ptq
from quantlib.study.ptq import PostTraining, qconfig, setting
from quantlib.subject import data
from quantlib.subject.data import batches
from quantlib.subject.evaluation import evaluate
from tests.quantization.networks import Tiny, randomize


@pytest.fixture
def tiny(monkeypatch):
    """A small network in the place of the checkpoint; nothing kept from other tests."""
    torch.manual_seed(0)
    graph = fuse(randomize(Tiny()))
    monkeypatch.setattr(ptq, "trained_graph", lambda network: graph)
    monkeypatch.setattr(ptq, "_SETTLED", {})
    ptq.calibrated.cache_clear()
    yield graph
    ptq.calibrated.cache_clear()


JOB = PostTraining("slice", images_calibration=12, images_test=20, ratios=10)


def test_the_same_as_by_the_three_verbs(tiny):
    for kind, observer in (("integer", "minmax"), ("simulated", "mse"), ("integer", "aciq")):
        for bits in (4, 3):
            chosen = setting(
                bits_weight=bits, bits_activation=bits, kind=kind, observer_activation=observer, draw=1
            )
            shown = data.load("calibration").take(12, seed=1)
            plain = calibrate(prepare(tiny, qconfig(chosen, tiny.graph, ratios=10)), batches(shown))
            wanted = evaluate(convert(plain, kind), data.load("test").take(20, seed=0))
            found = JOB.evaluation(JOB(chosen))
            assert np.array_equal(found.predictions, wanted.predictions)
            assert np.array_equal(found.labels, wanted.labels) and len(JOB(chosen)["predictions"]) == 20


def test_bits_land_where_the_setting_says(tiny):
    def widths(prepared):
        return ({name: observer.bits for name, observer in prepared.weights.items()},
                {name: observer.bits for name, observer in prepared.activations.items()})  # fmt: skip

    weights, activations = widths(JOB.prepared(setting(bits_weight=4, bits_fc=2, bits_activation=5)))
    assert weights == {"conv1": 4, "conv2": 4, "shortcut": 4, "conv3": 4, "fc": 2}
    assert set(activations.values()) == {5} and "input" in activations
    weights, activations = widths(JOB.prepared(setting(bits_weight=3, bits_activation=2, ends="8")))
    assert weights == {"conv1": 8, "conv2": 3, "shortcut": 3, "conv3": 3, "fc": 8}
    # The classifier reads what comes out of the last add, through two poolings that keep its grid.
    assert {name for name, bits in activations.items() if bits == 8} == {"input", "add_1"}
    weights, activations = widths(
        JOB.prepared(setting(bits_weight=32, bits_fc=2, bits_activation=32, ends="8"))
    )
    assert weights == {"conv1": 8, "fc": 8} and not activations


def test_a_range_is_searched_once_and_serves_the_integers(tiny):
    chosen = setting(bits_weight=3, observer_weight="mse")
    first, again = JOB.prepared(chosen), JOB.prepared({**chosen, "bits_activation": 4})
    assert all(again.weights[name] is observer for name, observer in first.weights.items())
    assert first.weights["conv2"].kept == []
    layer = tiny.get_submodule("conv2")
    q = quantize(layer.weight, first.weights["conv2"].qparams())
    assert int(q.abs().max()) == 3
    coarse = JOB.prepared({**chosen, "granularity": "per_tensor"})
    assert coarse.weights["conv2"].qparams().scale.dim() == 0


def test_unknown_columns():
    with pytest.raises(ConfigError, match="no column .* 'bit_weight'; did you mean 'bits_weight'"):
        setting(bit_weight=4)


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_few_bits_on_byte_kernels_are_the_reference_integer_by_integer(tiny, bits):
    pytest.importorskip("onnxruntime")
    prepared = JOB.prepared(setting(bits_weight=bits, bits_activation=bits))
    fast, exact = (convert(prepared, "integer", engine=engine) for engine in ("onnxruntime", "reference"))
    x, _ = next(batches(JOB.images(), batch_size=20))
    wanted, found = exact.integers(x), fast.integers(x)
    assert all(torch.equal(found[name], integers) for name, integers in wanted.items())
    assert max(int(q.max()) for q in wanted.values() if q.dtype == torch.uint8) == 2**bits - 1
    assert all(
        int(step.module.weight.abs().max()) < 2 ** (bits - 1)
        for step in exact.steps
        if hasattr(step.module, "weight")
    )

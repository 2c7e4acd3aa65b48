"""The ONNX Runtime engine: its shell, its graph and its refusals; the integers themselves are an oracle's."""

import copy
import pickle
import sys

import pytest
import torch

from quantlib.errors import ConfigError
from quantlib.quantization import integer_engine
from quantlib.quantization.integer import to_integer
from quantlib.quantization.integer_layers import IntegerLayer
from quantlib.quantization.integer_onnx import to_onnx
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, prepare
from tests.quantization.networks import Tiny, randomize

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def reference():
    config = QConfig(activation=Scheme(observer="minmax"))
    return to_integer(calibrate(prepare(randomize(Tiny()), config), [torch.randn(16, 3, 16, 16)]))


@pytest.fixture
def engine(reference):
    return integer_engine.Engine(reference)


def images(count=5, side=16):
    return torch.randn(count, 3, side, side)


@pytest.mark.parametrize("sub_batch", [1, 2, 3, 64])
def test_sub_batches_and_layout_do_not_change_a_bit(engine, sub_batch):
    x = images()
    wanted = engine.reference(x)
    engine.sub_batch = sub_batch
    assert torch.equal(engine(x), wanted)
    assert torch.equal(engine(x.contiguous(memory_format=torch.channels_last)), wanted)


def test_another_image_size_makes_another_session(engine):
    small, large = images(), images(2, 24)
    assert torch.equal(engine(small), engine.reference(small))
    first = engine._session((3, 16, 16), [])
    assert engine._session((3, 16, 16), []) is first
    assert torch.equal(engine(large), engine.reference(large))
    assert engine._session((3, 24, 24), []) is not first


def test_threads_are_those_of_torch(engine):
    before, x = torch.get_num_threads(), images()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(engine(x), engine.reference(x))
            options = engine._session((3, 16, 16), []).get_session_options()
            assert options.intra_op_num_threads == threads
    finally:
        torch.set_num_threads(before)


def test_copies_and_pickles_compute_the_same(engine):
    x = images()
    wanted = engine(x)
    for twin in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert not twin._sessions and torch.equal(twin(x), wanted)


def test_it_tells_what_the_reference_tells(engine):
    x = images()
    assert engine.rounding == "float" and engine.weight_bytes == engine.reference.weight_bytes
    wanted, got = engine.reference.integers(x), engine.integers(x)
    assert list(got) == list(wanted)
    assert [q.dtype for q in got.values()] == [q.dtype for q in wanted.values()]


def test_the_graph_computes_in_integers(reference):
    graph = to_onnx(reference, (3, 16, 16)).graph
    kinds = [node.op_type for node in graph.node]
    layers = [step for step in reference.steps if isinstance(step.module, IntegerLayer)]
    assert kinds.count("QLinearConv") + kinds.count("MatMulInteger") == len(layers) == 5
    assert kinds[:2] == ["Mul", "QuantizeLinear"] and kinds[-1] == "DequantizeLinear"
    assert not {"Conv", "Gemm", "MatMul", "QuantizeLinear", "DequantizeLinear"} & set(kinds[2:-1])


def test_the_file_stands_alone(reference, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model, x = to_onnx(reference, (3, 16, 16)), images()
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "tiny.onnx")
    session = runtime.InferenceSession(tmp_path / "tiny.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": x.numpy()})
    assert torch.equal(torch.from_numpy(logits), reference(x))


def test_without_vnni_the_weights_become_unsigned(engine, monkeypatch):
    key = "session.x64quantprecision"
    options = engine._session((3, 16, 16), []).get_session_options()
    with pytest.raises(Exception, match=key):
        options.get_session_config_entry(key)
    monkeypatch.setattr(integer_engine, "has_vnni", lambda: False)
    twin, x = copy.deepcopy(engine), images()
    assert torch.equal(twin(x), engine.reference(x))
    assert twin._session((3, 16, 16), []).get_session_options().get_session_config_entry(key) == "1"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(reference, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"needs {package}, .*pip install onnx onnxruntime"):
        integer_engine.Engine(reference)


def test_other_roundings_are_refused():
    config = QConfig(activation=Scheme(observer="minmax"))
    prepared = calibrate(prepare(randomize(Tiny()), config), [torch.randn(4, 3, 16, 16)])
    with pytest.raises(ConfigError, match="not 'gemmlowp'; use engine='reference'"):
        integer_engine.Engine(to_integer(prepared, "gemmlowp"))


def test_accumulators_that_may_not_fit_are_refused(reference):
    layer = next(step.module for step in reference.steps if step.name == "conv2")
    layer.fits = False
    with pytest.raises(ConfigError, match="Layer 'conv2' may need .* more than 32 bits"):
        to_onnx(reference, (3, 16, 16))

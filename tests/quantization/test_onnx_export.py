"""What is written into the exported files, and what is refused."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from quantlib.errors import ConfigError, UnsupportedOperatorError
from quantlib.quantization import integer_onnx
from quantlib.quantization.integer import to_integer
from quantlib.quantization.integer_engine import Engine
from quantlib.quantization.onnx_export import checked, export_onnx, layer_differences, onnxruntime
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, prepare
from tests.quantization.networks import Excited, Tiny, randomize

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SHAPE = (3, 16, 16)


@pytest.fixture
def model():
    return randomize(Tiny())


@pytest.fixture
def reference(model):
    config = QConfig(activation=Scheme(observer="minmax"))
    return to_integer(calibrate(prepare(model, config), [torch.randn(4, *SHAPE)]))


def kinds(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def test_the_engine_exports_what_its_reference_does(reference, tmp_path):
    a = export_onnx(reference, tmp_path / "a.onnx", SHAPE)
    b = export_onnx(Engine(reference), tmp_path / "b.onnx", SHAPE)
    assert a.read_bytes() == b.read_bytes()


def test_qdq_is_float_operators_between_quantizations(reference, tmp_path):
    graph = onnx.load(export_onnx(reference, tmp_path / "qdq.onnx", SHAPE)).graph
    made = {node.output[0]: node for node in graph.node}
    assert not any(node.domain for node in graph.node)
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 4
    for node in convolutions:
        assert [made[name].op_type for name in node.input] == ["DequantizeLinear"] * 3
    stored = {each.name: onnx.numpy_helper.to_array(each).dtype.name for each in graph.initializer}
    assert [stored[made[name].input[0]] for name in convolutions[0].input[1:]] == ["int8", "int32"]


def test_the_scale_of_a_bias_is_the_product_that_runtimes_look_for(reference, tmp_path):
    graph = onnx.load(export_onnx(reference, tmp_path / "qdq.onnx", SHAPE)).graph
    made = {node.output[0]: node for node in graph.node}
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            x, w, bias = (stored[made[name].input[1]] for name in node.input)
            assert (bias == x * w).all()


def test_float_has_no_integers_and_no_batch_norm(model, tmp_path):
    found = kinds(export_onnx(model, tmp_path / "float.onnx", SHAPE, form="float"))
    assert "BatchNormalization" not in found and "QuantizeLinear" not in found
    assert found.count("Conv") == 4 and found.count("Gemm") == 1


def test_what_cannot_be_exported_is_named_with_its_place(tmp_path):
    with pytest.raises(UnsupportedOperatorError, match=r"Sigmoid\) at block.gate.*mul.* at block"):
        export_onnx(Excited().eval(), tmp_path / "no.onnx", SHAPE, form="float")
    assert not list(tmp_path.iterdir())


def test_an_operator_without_a_writer_is_named(reference, monkeypatch, tmp_path):
    maker, writers = integer_onnx.FORMS["qdq"]
    poorer = {kind: writer for kind, writer in writers.items() if kind.__name__ != "IntegerAdd"}
    monkeypatch.setitem(integer_onnx.FORMS, "qdq", (maker, poorer))
    with pytest.raises(UnsupportedOperatorError, match=r"cannot write 'add' \(IntegerAdd\), 'add_1'"):
        export_onnx(reference, tmp_path / "no.onnx", SHAPE)


def test_the_wrong_kind_of_network_is_refused(model, reference, tmp_path):
    with pytest.raises(
        ConfigError, match=r"needs an integer network; call convert\(prepared, kind='integer'"
    ):
        export_onnx(model, tmp_path / "no.onnx", SHAPE)
    for given in (reference, Engine(reference)):
        with pytest.raises(ConfigError, match="needs the float32 network; use form='qdq'"):
            export_onnx(given, tmp_path / "no.onnx", SHAPE, form="float")
    with pytest.raises(ConfigError, match="qdq"):
        export_onnx(reference, tmp_path / "no.onnx", SHAPE, form="qdp")


def test_a_damaged_graph_does_not_pass_the_checker(reference):
    graph = integer_onnx.to_onnx(reference, SHAPE, form="qdq")
    checked(graph)
    graph.graph.node[3].input[0] = "nobody"
    with pytest.raises(onnx.checker.ValidationError):
        checked(graph)


def test_a_network_of_one_layer(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    whole = to_integer(calibrate(prepare(model, QConfig()), [torch.randn(4, *SHAPE)]))
    assert kinds(export_onnx(whole, tmp_path / "one.onnx", SHAPE)).count("Conv") == 1


class TwoResults(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.a(x)
        return y, self.b(y)


def test_two_results_and_names_of_ours_are_refused_in_float_too(tmp_path):
    with pytest.raises(UnsupportedOperatorError, match="one input and one output"):
        export_onnx(TwoResults().eval(), tmp_path / "x.onnx", SHAPE, form="float")
    model = nn.Sequential(OrderedDict(images=nn.Conv2d(3, 4, 3))).eval()
    with pytest.raises(ConfigError, match="Rename the layer 'images'"):
        export_onnx(model, tmp_path / "x.onnx", SHAPE, form="float")


@pytest.mark.parametrize("form", ["qlinear", "qdq"])
def test_every_step_may_be_a_result(reference, form):
    names = [step.name for step in reference.steps[:-1]]
    graph = integer_onnx.to_onnx(reference, SHAPE, names, form)
    checked(graph)
    x = torch.randn(2, *SHAPE)
    found = onnxruntime(graph.SerializeToString(), {"images": x.numpy()})
    assert set(found) >= set(names)


def test_a_form_that_does_not_exist_is_named(reference):
    with pytest.raises(ConfigError, match="did you mean 'qdq'"):
        layer_differences(reference, torch.randn(1, *SHAPE), onnxruntime, "qdp")
    x = torch.randn(1, *SHAPE, dtype=torch.float64, requires_grad=True)
    assert layer_differences(reference, x, onnxruntime)


def test_a_max_pooling_that_a_runtime_cannot_pad_is_named(tmp_path):
    pool = nn.MaxPool2d(2, 2, padding=1, dilation=2, ceil_mode=True)
    with pytest.raises(UnsupportedOperatorError, match="use ceil_mode=False"):
        model = nn.Sequential(nn.Conv2d(3, 3, 1), pool).eval()
        export_onnx(model, tmp_path / "x.onnx", (3, 10, 10), form="float")

"""The roofline: operations and bytes by hand, and the time of every layer by the runtime's own clock."""

import pytest
import torch

from quantlib.quantization.integer import to_integer
from quantlib.quantization.integer_onnx import float_to_onnx, to_onnx
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, prepare
from quantlib.study import roofline
from tests.quantization.networks import Tiny, randomize

pytest.importorskip("onnxruntime")
LAYERS = {"conv1", "conv2", "shortcut", "conv3", "fc"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return randomize(Tiny())


@pytest.fixture(scope="module")
def reference(model):
    config = QConfig(activation=Scheme(observer="minmax"))
    return to_integer(calibrate(prepare(model, config), [torch.randn(8, 3, 16, 16)]))


def test_costs_by_hand(reference):
    costs = roofline.layer_costs(reference, torch.randn(2, 3, 16, 16))
    assert set(costs) == LAYERS
    # 8 to 16 channels, 3x3, stride 2: of 8x8 windows those at the upper and left edge miss a row or a column.
    conv = costs["conv2"]
    assert conv.operations == 2 * 2 * (8 * 16) * (7 * 3 + 2) ** 2
    values = 2 * 8 * 256 + 16 * 8 * 9 + 2 * 16 * 64
    assert conv.bytes_int8 == values + 8 * 16 and conv.bytes_fp32 == 4 * (values + 16)
    assert costs["fc"].operations == 2 * 2 * 16 * 10


@pytest.mark.parametrize("form", ["qlinear", "qdq", "float"])
def test_every_layer_has_a_time_in_onnx_runtime(model, reference, form):
    shape, x = (3, 16, 16), torch.randn(4, 3, 16, 16)
    graph = float_to_onnx(model, shape) if form == "float" else to_onnx(reference, shape, form=form)
    found = roofline.onnxruntime_seconds(graph.SerializeToString(), x, repeats=2)
    assert set(found) >= LAYERS and all(0 < found[name] < 1 for name in LAYERS)


def test_every_layer_has_a_time_in_openvino(reference):
    pytest.importorskip("openvino")
    graph = to_onnx(reference, (3, 16, 16), form="qdq").SerializeToString()
    found = roofline.openvino_seconds(graph, torch.randn(16, 3, 16, 16), repeats=2)
    assert set(found) >= LAYERS
    rates = roofline.achieved(
        {"conv1": roofline.Cost(100, 1, 4), "fc": roofline.Cost(1, 1, 1)}, {"conv1": 0.5}
    )
    assert rates == {"conv1": 200}


def test_peaks_are_in_order():
    found = roofline.peaks(repeats=1, at_least=0.0, megabytes=8)
    assert min(found.int8, found.fp32) > 1e8 and found.bandwidth > 1e7

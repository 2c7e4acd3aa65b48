"""Exported graphs, run by runtimes nobody here wrote: within one step a layer, or the very same integers."""

import pytest
import torch
from torch import nn

from quantlib.quantization.integer import to_integer
from quantlib.quantization.integer_pooling import IntegerPool2d
from quantlib.quantization.onnx_export import export_onnx, layer_differences, onnxruntime, openvino
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, prepare
from quantlib.subject.zoo import random_network
from tests.quantization.networks import InPlaceShortcut, Spellings, Tiny, randomize

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.oracle

RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino}


class Pools(nn.Module):
    """Every pooling, in the spellings that ONNX has no word for as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.largest = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.outside = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.inside = nn.AvgPool2d((3, 2), 1, (1, 0))
        self.divided = nn.AvgPool2d(2, 1, divisor_override=3)
        self.ceiling = nn.AvgPool2d(2, 2, ceil_mode=True)
        self.uneven = nn.AdaptiveAvgPool2d((3, 2))
        self.fc = nn.Linear(48, 5)

    def forward(self, x):
        x = self.inside(self.outside(self.largest(self.conv(x).relu())))
        return self.fc(self.uneven(self.ceiling(self.divided(x))).flatten(1))


NETWORKS = {"tiny": Tiny, "spellings": Spellings, "in place": InPlaceShortcut, "pools": Pools}
CONFIGS = {
    "8 bits": QConfig(activation=Scheme(observer="minmax")),
    "6 bits": QConfig(activation=Scheme(bits=6, observer="minmax"), quantize_output=True),
    "output too": QConfig(activation=Scheme(observer="minmax"), quantize_output=True),
}
CASES = [(name, config) for name in NETWORKS for config in CONFIGS]
CASES.remove(("in place", "8 bits"))  # its result comes from an addition, which needs a grid


def integers_of(name, config="8 bits"):
    torch.manual_seed(0)
    side = 16
    model, x = randomize(NETWORKS[name]()), torch.randn(4, 3, side, side)
    return to_integer(calibrate(prepare(model, CONFIGS[config]), [x])), x


def run_by(name):
    if name == "openvino":
        pytest.importorskip("openvino")
    return RUNTIMES[name]


@pytest.mark.parametrize(("name", "config"), CASES)
@pytest.mark.parametrize("who", RUNTIMES)
def test_qdq_is_at_most_one_step_off_in_every_layer(who, name, config):
    reference, x = integers_of(name, config)
    found = layer_differences(reference, x, run_by(who))
    assert len(found) >= len([step for step in reference.steps if step.name != "fc"]) - 1
    assert max(each.largest for each in found) <= 1
    assert share_off(reference, found) <= 1e-3


def share_off(reference, found):
    """The share of integers that are off, poolings apart: averages of few integers lie on ties."""
    pools = {step.name for step in reference.steps if isinstance(step.module, IntegerPool2d)}
    others = [each for each in found if each.layer not in pools]
    return sum(each.differing for each in others) / sum(each.n for each in others)


def test_a_wrong_grid_would_be_seen():
    reference, x = integers_of("tiny")
    step = next(step for step in reference.steps if step.name == "conv2")
    broken = step.module.output_grid._replace(zero_point=step.module.output_grid.zero_point ^ 5)
    right = reference.integers(x)
    reference.integers = lambda images: {name: q[: len(images)] for name, q in right.items()}
    step.module.output_grid = broken
    worst = {each.layer: each.largest for each in layer_differences(reference, x, onnxruntime)}
    assert worst["conv2"] > 1 and worst["conv1"] <= 1


@pytest.mark.parametrize("name", ["tiny", "pools"])
def test_qlinear_alone_is_bit_equal(name):
    reference, x = integers_of(name)
    assert all(each.differing == 0 for each in layer_differences(reference, x, onnxruntime, "qlinear"))


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
@pytest.mark.parametrize("who", RUNTIMES)
def test_networks_nobody_here_wrote(who, name):
    model, x = random_network(name, images=2, side=32)
    reference = to_integer(calibrate(prepare(model, CONFIGS["output too"]), [x]))
    found = layer_differences(reference, x, run_by(who))
    assert max(each.largest for each in found) <= 1
    assert share_off(reference, found) <= 1e-3


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("who", RUNTIMES)
def test_the_float_network_means_what_torch_computes(who, name, tmp_path):
    torch.manual_seed(0)
    model, x = randomize(NETWORKS[name]()), torch.randn(3, 3, 16, 16)
    path = export_onnx(model, tmp_path / "float.onnx", (3, 16, 16), form="float")
    (logits,) = run_by(who)(path.read_bytes(), {"images": x.numpy()}).values()
    with torch.no_grad():
        wanted = model(x)
    assert (torch.from_numpy(logits) - wanted).abs().max() <= 1e-5 * wanted.abs().max()

import sys

import pytest
import torch
from torch import nn

from quantlib.errors import ConfigError, NonFiniteError, NotCalibratedError, UnsupportedOperatorError
from quantlib.quantization import workflow
from quantlib.quantization.fused import FusedConv2d
from quantlib.quantization.graph import fuse
from quantlib.quantization.integer import Integer
from quantlib.quantization.observers import make_observer
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.subject.models import build
from tests.quantization.networks import Excited, Spellings, Tiny, randomize

MINMAX = QConfig(activation=Scheme(observer="minmax"))


@pytest.fixture
def images():
    return torch.randn(8, 3, 16, 16)


def test_observers_by_name_after_the_fused_relu(images):
    prepared = calibrate(prepare(randomize(Tiny()), MINMAX, example=images), [images])
    assert list(prepared.activations) == ["input", "conv1", "conv2", "shortcut", "add", "conv3", "add_1"]
    assert list(prepared.weights) == ["conv1", "conv2", "shortcut", "conv3", "fc"]
    low, high = prepared.activations["conv1"].range()
    assert low == 0 and high > 0 and prepared.activations["conv1"].qparams().zero_point == 0
    assert prepared.activations["conv3"].range()[0] < 0  # no ReLU there
    assert torch.equal(prepared.activations["input"].range()[1], images.max())


def test_forward_is_the_float_network_and_observes(images):
    model = randomize(Tiny())
    prepared = prepare(model, MINMAX)
    assert torch.allclose(prepared(images), model(images), atol=1e-5)
    assert prepared.activations["add_1"].minimum == 0


def test_batches_may_carry_labels(images):
    plain = calibrate(prepare(randomize(Tiny()), MINMAX), [images[:4], images[4:]])
    torch.manual_seed(0)
    labelled = calibrate(prepare(plain.graph_module, MINMAX), [(images[:4], 1), [images[4:], 2]])
    assert torch.equal(plain.qparams("conv3").scale, labelled.qparams("conv3").scale)


def test_the_output_stays_float_unless_asked():
    assert "fc" not in prepare(randomize(Tiny()), MINMAX).activations
    asked = QConfig(activation=Scheme(observer="minmax"), quantize_output=True)
    assert "fc" in prepare(randomize(Tiny()), asked).activations
    squeezenet = prepare(build("squeezenet").eval(), MINMAX)
    assert "classifier.1" not in squeezenet.activations  # the average pool behind it makes the logits


def test_an_observer_can_be_exchanged(images):
    prepared = prepare(randomize(Tiny()), MINMAX)
    prepared.set_observer("conv1", make_observer("recording"))
    calibrate(prepared, [images, images])
    assert len(prepared.activations["conv1"].recorded) == 2
    with pytest.raises(ConfigError, match="did you mean 'conv1'"):
        prepared.set_observer("conv_1", make_observer("minmax"))


def test_overrides_of_none_leave_float(images):
    config = QConfig(
        activation=Scheme(observer="minmax"),
        by_type={"add": None},
        by_name={"fc": None, "conv2": QConfig(weight=Scheme(bits=4, symmetric=True), activation=None)},
    )
    prepared = prepare(randomize(Tiny()), config)
    # conv3 reads "add" as integers; nobody does so with the last addition.
    assert set(prepared.activations) == {"input", "conv1", "shortcut", "add", "conv3"}
    assert set(prepared.weights) == {"conv1", "conv2", "shortcut", "conv3"}
    assert prepared.weights["conv2"].quant_max == 7
    simulated = convert(calibrate(prepared, [images]))
    assert type(simulated.fc).__name__ == "FusedLinear"


@pytest.mark.parametrize("kind", ["simulated", "mixed"])
def test_everything_float_is_the_float_network(images, kind):
    model = randomize(Tiny())
    prepared = calibrate(prepare(model, QConfig(weight=None, activation=None)), [images])
    assert torch.allclose(convert(prepared, kind)(images), model(images), atol=1e-5)


def test_unknown_layer_names_are_refused_with_the_closest():
    with pytest.raises(ConfigError, match="did you mean 'shortcut'"):
        prepare(randomize(Tiny()), QConfig(by_name={"shortcutt": None}))


def test_wrong_order(images):
    prepared = prepare(randomize(Tiny()), MINMAX)
    for kind in ("simulated", "mixed", "integer"):
        with pytest.raises(NotCalibratedError, match=r"'input'.*run calibrate"):
            convert(prepared, kind)
    with pytest.raises(ConfigError, match="prepare, calibrate, then convert"):
        convert(Tiny())
    with pytest.raises(ConfigError, match="what prepare returned"):
        calibrate(Tiny(), [images])


def test_unknown_kind(images):
    prepared = calibrate(prepare(randomize(Tiny()), MINMAX), [images])
    with pytest.raises(ConfigError, match="did you mean 'mixed'"):
        convert(prepared, "mixd")


def test_rounding_and_engine_belong_to_integer(images):
    prepared = calibrate(prepare(randomize(Tiny()), MINMAX), [images])
    for kind in ("simulated", "mixed"):
        for options in ({"rounding": "float"}, {"engine": "auto"}):
            with pytest.raises(ConfigError, match=f"kind='{kind}' takes no rounding and no engine"):
                convert(prepared, kind, **options)
    with pytest.raises(ConfigError, match="no engine named 'tvm'"):
        convert(prepared, "integer", engine="tvm")
    with pytest.raises(ConfigError, match="did you mean 'gemmlowp'"):
        convert(prepared, "integer", rounding="gemmlow")
    with pytest.raises(ConfigError, match="ONNX Runtime rounds as 'float', not as 'gemmlowp'"):
        convert(prepared, "integer", rounding="gemmlowp", engine="onnxruntime")


def test_the_engine_of_integer(images, monkeypatch):
    prepared = calibrate(prepare(randomize(Tiny()), MINMAX), [images])
    assert isinstance(convert(prepared, "integer", engine="reference"), Integer)
    assert convert(prepared, "integer", rounding="gemmlowp").rounding == "gemmlowp"
    fast = pytest.importorskip("onnxruntime") and convert(prepared, "integer")
    assert type(fast).__name__ == "Engine"
    assert type(convert(prepared, "integer", engine="onnxruntime")).__name__ == "Engine"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as where it is not installed
    assert isinstance(convert(prepared, "integer"), Integer)
    with pytest.raises(ConfigError, match="pip install"):
        convert(prepared, "integer", engine="onnxruntime")


def test_a_calibration_in_bfloat16_moves_the_ranges_a_little(images):
    model = randomize(Tiny())
    usual, rougher = (
        calibrate(prepare(model, MINMAX), [images], dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    for name in usual.activations:
        wanted, got = (prepared.activations[name].range() for prepared in (usual, rougher))
        width = wanted[1] - wanted[0]
        assert all(abs(a - b) <= 0.02 * width for a, b in zip(wanted, got, strict=True)), name
    deepest = list(usual.activations)[-1]
    assert (
        usual.activations[deepest].range() != rougher.activations[deepest].range()
    )  # it did run in bfloat16
    with pytest.raises(ConfigError, match="float16"):
        calibrate(prepare(model, MINMAX), [images], dtype=torch.float16)


def test_calibrate_wants_at_least_one_batch():
    with pytest.raises(ConfigError, match="no batches"):
        calibrate(prepare(randomize(Tiny()), MINMAX), [])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_activations_name_the_layer(images, bad):
    prepared = prepare(randomize(Tiny()), MINMAX)
    with torch.no_grad():
        prepared.graph_module.conv2.bias[3] = bad
    with pytest.raises(NonFiniteError, match="'conv2'"):
        calibrate(prepared, [images])


def test_non_finite_weights_name_the_layer():
    model = randomize(Tiny())
    with torch.no_grad():
        model.conv3.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="weight of 'conv3'"):
        prepare(model, MINMAX)


def test_train_mode_is_refused():
    with pytest.raises(ConfigError, match="train mode"):
        prepare(Tiny(), MINMAX)


def test_an_example_catches_a_graph_that_computes_something_else(images):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.calls = nn.Conv2d(3, 3, 1), 0

        def forward(self, x):
            self.calls += 1
            return self.conv(x) if self.calls < 2 else torch.relu(self.conv(x))

    with pytest.raises(UnsupportedOperatorError, match="does not compute"):
        model = Counting().eval()
        model.calls = 5
        graph = fuse(model)
        model.calls = -9
        workflow._check_example(model, graph, images)


def test_prepare_looks_at_the_example(images):
    class Graded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):  # traced with gradients, run without
            return torch.relu(self.conv(x)) if torch.is_grad_enabled() else self.conv(x)

    with pytest.raises(UnsupportedOperatorError, match="does not compute"):
        prepare(Graded().eval(), MINMAX, example=images)


def test_two_inputs_are_refused():
    class Pair(nn.Module):
        def forward(self, a, b):
            return a + b

    with pytest.raises(UnsupportedOperatorError, match="one input"):
        prepare(Pair().eval())


def test_unsupported_operators_in_float(images):
    prepared = calibrate(prepare(Excited().eval(), MINMAX, unsupported="float"), [images])
    assert list(prepared.activations) == ["input", "stem", "block.conv", "block.mul"]
    wanted = prepared(images).detach()
    for kind in ("simulated", "mixed"):
        assert torch.allclose(convert(prepared, kind)(images), wanted, atol=0.05 * float(wanted.abs().max()))
    with pytest.raises(UnsupportedOperatorError, match="mul"):
        prepare(Excited().eval(), MINMAX)


def test_a_fused_graph_is_taken_as_it_is(images):
    apart = fuse(randomize(Tiny()), relu=False)
    prepared = calibrate(prepare(apart, MINMAX), [images])
    assert "relu" in prepared.activations and prepared.activations["conv1"].range()[0] < 0
    assert isinstance(prepared.graph_module.conv1, FusedConv2d) and not prepared.graph_module.conv1.relu
    assert torch.isfinite(convert(prepared)(images)).all()


def test_observers_move_with_the_network(images):
    prepared = calibrate(prepare(randomize(Spellings()), MINMAX), [images])
    prepared.to(torch.float64)
    assert prepared.activations["conv"].maximum.dtype == torch.float64


def test_a_layer_with_a_name_of_ours_is_refused():
    model = nn.Sequential()
    model.add_module("input", nn.Conv2d(3, 4, 1))
    with pytest.raises(ConfigError, match="Rename the layer 'input'"):
        prepare(model.eval())


def test_one_tensor_is_no_iterable_of_batches(images):
    with pytest.raises(ConfigError, match=r"not one tensor; pass \[x\]"):
        calibrate(prepare(randomize(Tiny()), MINMAX), images)


class Broadcast(nn.Module):
    """A 1x1 map is added to all pixels, in either order, by either kind of convolution."""

    def __init__(self, size, first):
        super().__init__()
        self.begin, self.first = nn.Conv2d(3, 4, 3, padding=1), first
        self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, size, padding=size // 2)

    def forward(self, x):
        x = self.begin(x).relu()
        y = self.conv(self.pool(x))
        return ((y + x) if self.first else (x + y)).relu()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", ["mixed", "integer"])
def test_a_summand_may_be_broadcast(images, size, first, kind):
    model = Broadcast(size, first).eval()
    config = QConfig(activation=Scheme(observer="minmax"), quantize_output=True)
    prepared = calibrate(prepare(model, config, example=images), [images])
    options = {"engine": "reference"} if kind == "integer" else {}
    with torch.no_grad():
        wanted, got = model(images), convert(prepared, kind, **options)(images)
    assert (got - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_what_observers_keep_beside_buffers_moves_too(images):
    tensors = QConfig(weight=Scheme(per_channel=True, observer="mse"), activation=Scheme(observer="mse"))
    prepared = calibrate(prepare(randomize(Tiny()), tensors), [images])
    prepared.activations["conv1"].range()
    prepared.to("meta")
    for observer in (*prepared.activations.values(), *prepared.weights.values()):
        counted = [] if observer.histogram is None else [observer.histogram.counts]
        held = [observer.minimum, *observer.kept, *counted, *(observer._chosen or ())]
        assert all(tensor.device.type == "meta" for tensor in held)


class Swish(nn.Module):
    """A layer that only an operator without a kernel reads."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.c2(nn.functional.silu(self.c1(x)))


def test_a_float_layer_that_no_integer_layer_reads_has_no_grid():
    floats = QConfig(by_name={"c1": None})
    prepared = prepare(Swish().eval(), floats, unsupported="float")
    assert "c1" not in prepared.activations and "input" in prepared.activations


def test_an_error_of_a_calibration_is_one_sentence(images):
    prepared = prepare(randomize(Tiny()))
    with pytest.raises(NonFiniteError) as found:
        calibrate(prepared, [images * float("nan")])
    assert "While executing" not in str(found.value) and len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize("example", [torch.zeros(0, 3, 16, 16), torch.full((1, 3, 16, 16), float("nan"))])
def test_an_example_that_shows_nothing_is_refused(example):
    with pytest.raises(ConfigError, match="empty or not finite"):
        prepare(randomize(Tiny()), example=example)


def test_a_setting_for_a_pooling_would_do_nothing_and_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(196, 2)).eval()
    with pytest.raises(ConfigError, match="no layer named '1'"):
        prepare(model, QConfig(by_name={"1": QConfig()}))


@pytest.mark.parametrize("call, said", [
    (lambda: prepare("x"), "prepare needs a network .*not str"),
    (lambda: prepare(Tiny().eval(), "int8"), "qconfig must be a QConfig, not str"),
    (lambda: prepare(Tiny().eval(), Scheme()), "not Scheme; write QConfig"),
    (lambda: prepare(Tiny().eval(), example=[torch.zeros(1, 3, 16, 16)]), "one float tensor"),
    (lambda: prepare(Tiny().eval(), example=torch.zeros(1, 3, 16, 16).byte()), "one float tensor"),
    (lambda: calibrate(prepare(Tiny().eval()), None), "iterable of batches, not one nonetype"),
    (lambda: calibrate(prepare(Tiny().eval()), [{"x": 1}]), "A batch must be a tensor of images.*not dict"),
    (lambda: calibrate(prepare(Tiny().eval()), [[]]), "A batch must be a tensor of images.*not list"),
])  # fmt: skip
def test_what_is_no_network_and_no_batch_is_one_sentence(call, said):
    with pytest.raises(ConfigError, match=said):
        call()

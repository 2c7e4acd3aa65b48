"""The OpenVINO engine: int8 kernels everywhere, the addition inside the convolution, results near ours."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from quantlib.errors import ConfigError
from quantlib.quantization import integer_openvino
from quantlib.quantization.integer import to_integer
from quantlib.quantization.integer_elementwise import IntegerAdd
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, convert, prepare
from tests.quantization.networks import Tiny, randomize


def prepared():
    torch.manual_seed(0)
    config = QConfig(activation=Scheme(observer="minmax"))
    return calibrate(prepare(randomize(Tiny()), config), [torch.randn(16, 3, 16, 16)])


@pytest.fixture
def engine():
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    return convert(prepared(), kind="integer", engine="openvino")


def test_every_layer_runs_on_an_int8_kernel(engine):
    kernels = engine.kernels((3, 16, 16))
    layers = [
        (precision, kernel)
        for kind, precision, kernel in kernels
        if kind in ("Convolution", "FullyConnected")
    ]
    assert len(layers) == 5
    assert all(precision == "u8" and kernel.endswith("I8") for precision, kernel in layers)
    additions = [step for step in engine.reference.steps if isinstance(step.module, IntegerAdd)]
    assert [kind for kind, _, _ in kernels].count("Eltwise") < len(additions)  # one is inside a convolution


def test_logits_are_near_and_so_are_the_integers(engine):
    x = torch.randn(6, 3, 16, 16)
    wanted = engine.reference(x)
    assert (engine(x) - wanted).abs().max() <= 0.05 * wanted.abs().max()
    found, ours = engine.integers(x), engine.reference.integers(x)
    assert list(found) == list(ours)
    assert [q.dtype for q in found.values()] == [q.dtype for q in ours.values()]
    assert (
        max(int((found[name].int() - q.int()).abs().max()) for name, q in ours.items() if name != "fc") <= 2
    )
    wrong = (found["fc"] - ours["fc"]).abs().max()
    assert wrong <= 0.05 * ours["fc"].abs().max()


def test_sub_batches_do_not_overwrite_each_other(engine):
    x = torch.randn(5, 3, 16, 16)
    wanted = engine(x)
    engine.sub_batch = 2
    assert torch.allclose(engine(x), wanted, atol=1e-5)
    kept = engine(x)
    before = kept.clone()
    engine(torch.zeros_like(x))
    assert torch.equal(kept, before)


def test_threads_are_those_of_torch_and_copies_work(engine):
    x, before = torch.randn(2, 3, 16, 16), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            engine(x)
            compiled = engine._session((3, 16, 16), []).get_compiled_model()
            assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(copy.deepcopy(engine)(x), engine(x))


def test_without_vnni_layers_that_may_saturate_are_refused(monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(integer_openvino, "has_vnni", lambda: False)
    with pytest.raises(ConfigError, match="no VNNI, and int8 sums of layer .* might saturate"):
        convert(prepared(), kind="integer", engine="openvino")


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        ConfigError, match=r"needs openvino, which is not installed: pip install -e '\.\[rivals\]'"
    ):
        convert(prepared(), kind="integer", engine="openvino")


def test_other_roundings_are_refused():
    with pytest.raises(ConfigError, match="OpenVINO rounds as 'float', not as 'gemmlowp'"):
        convert(prepared(), kind="integer", engine="openvino", rounding="gemmlowp")
    assert to_integer(prepared(), "gemmlowp").rounding == "gemmlowp"


def test_two_threads_get_their_own_logits(engine):
    """A request holds one pair of buffers; without turns, a third of these came out wrong."""
    inputs = [torch.randn(2, 3, 16, 16) for _ in range(3)]
    wanted = [engine(x) for x in inputs]

    def asked(place):
        return [bool(torch.equal(engine(inputs[place]), wanted[place])) for _ in range(25)]

    with ThreadPoolExecutor(3) as pool:
        assert all(all(each) for each in pool.map(asked, range(3)))


def test_sums_that_are_averaged_are_read_off_the_logits_too():
    """The mean of accumulators has bits behind the point, the accumulators before it have none."""
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1))
    x = torch.randn(16, 3, 12, 12)
    engine = convert(calibrate(prepare(model.eval()), [x]), kind="integer", engine="openvino")
    ours = engine.reference.integers(x)
    sums = [name for name, value in ours.items() if value.dtype == torch.int32]
    assert len(sums) == 2
    for name in sums:
        assert (engine.integers(x)[name] - ours[name]).abs().max() <= 0.03 * ours[name].abs().max(), name


# Without OpenVINO ---------------------------------------------------------------------------------------


def test_bits_behind_the_point_add_up_along_a_path():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.randn(2, 3, 10, 10)
    reference = to_integer(calibrate(prepare(model, QConfig(activation=Scheme(observer="minmax"))), [x]))
    kept = reference.steps[2].module.fraction_bits
    found = integer_openvino.fraction_bits(reference)
    assert kept > 0 and [name for name, bits in found.items() if not bits] == ["", "input", "0"]
    assert {name: found[name] for name in ("1", "2", "3", "dequantize")} == dict.fromkeys(
        ("1", "2", "3", "dequantize"), kept
    )


def test_seven_bits_are_safe_without_vnni(monkeypatch):
    monkeypatch.setattr(integer_openvino, "has_vnni", lambda: False)
    model, x = nn.Sequential(nn.Conv2d(2, 1, 1)).eval(), torch.randn(2, 2, 4, 4)
    nn.init.ones_(model[0].weight)  # both weights are 127: 2 * 127 * 255 is more than 16 bits hold
    for bits in (8, 7):
        config = QConfig(activation=Scheme(bits, observer="minmax"))
        reference = to_integer(calibrate(prepare(model, config), [x]))
        if bits == 7:  # 2 * 127 * 127 is not
            integer_openvino.check_saturation(reference)
            continue
        with pytest.raises(ConfigError, match="int8 sums of layer '0' might saturate.*7 bits"):
            integer_openvino.check_saturation(reference)
    monkeypatch.setattr(integer_openvino, "has_vnni", lambda: True)
    integer_openvino.check_saturation(reference)

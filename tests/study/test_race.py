"""Races and their rows; the rivals: made by their own defaults, or named in one sentence where missing."""

import sys
import time

import pytest
import torch
from torch import nn

from quantlib import study
from quantlib.errors import ConfigError
from quantlib.study import rivals
from quantlib.study.race import fastest, first_calls, race, speed_rows
from quantlib.subject.benchmark import Timing
from quantlib.subject.data import Images, normalize
from tests.quantization.networks import Tiny, randomize


def images(count: int = 8) -> Images:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=rng, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 10, "calibration", "made here")


def test_every_racer_gets_each_batch_size_channels_last(monkeypatch, capsys):
    monkeypatch.setattr("quantlib.study.race.AT_LEAST", 0.0)
    monkeypatch.setattr("quantlib.study.race.PAUSE", 0.0)
    seen = {"a": [], "b": []}
    racers = {name: lambda x, seen=seen[name]: seen.append((x.shape[0], x.stride(1))) for name in seen}
    timings = race(racers, torch.zeros(3, 3, 8, 8), sizes=(1, 7), repeats=2)
    assert seen["a"] == seen["b"] == [(1, 1)] * 3 + [(7, 1)] * 3  # a stride of 1 over channels: channels last
    assert {size: len(found["a"].runs) for size, found in timings.items()} == {1: 2, 7: 2}
    assert f"torch {torch.__version__}" in capsys.readouterr().out


def test_rows_by_hand(small_course):
    timings = {
        4: {
            "fp32": Timing(4.0, 2.0, 8.0, (2.0, 4.0, 8.0)),
            "integer": Timing(1.0, 0.5, 2.0, (0.5, 1.0, 1.0)),
        }
    }
    rows = speed_rows(study.start("01"), timings)
    found = {(row["method"], row["metric"]): row for row in rows}
    rate = found["integer", "images_per_second"]
    assert (rate["value"], rate["low"], rate["high"], rate["n"], rate["batch"]) == (4.0, 2.0, 8.0, 3, 4)
    times = found["integer", "speedup"]
    assert (times["value"], times["low"], times["high"]) == (4.0, 4.0, 8.0)
    assert found["fp32", "speedup"]["value"] == 1


def test_the_first_call_is_taken_apart():
    calls = []

    def network(x):
        time.sleep(0.05 if not calls else 0)
        calls.append(len(x))

    found = first_calls({"a": network}, torch.zeros(1, 3, 4, 4), (1, 3))
    assert calls == [1, 3] and found[1]["a"] >= 0.05 > found[3]["a"]


def test_fastest_of_a_family():
    timings = {
        name: Timing(seconds, 0, 0, ()) for name, seconds in {"ao": 3.0, "ao_2": 2.0, "mixed": 1.0}.items()
    }
    assert fastest(timings, "ao") == "ao_2" and fastest(timings, "") == "mixed"


def test_a_missing_toolkit_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as where it is not installed
    model, x = randomize(Tiny()), torch.randn(2, 3, 32, 32)
    assert rivals.if_here("ONNX Runtime", lambda: rivals.OnnxRuntimeInt8(model, x)) is None
    assert capsys.readouterr().out.startswith("ONNX Runtime is not here: ")
    with pytest.raises(ZeroDivisionError):  # a fault of ours is not hidden as a missing toolkit
        rivals.if_here("nothing", lambda: 1 / 0)


def small() -> tuple[nn.Module, torch.Tensor]:
    """A network that every toolkit can take, and images of the calibration's kind."""
    first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    layers = (first, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return randomize(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 10))), normalize(images().pixels)


def agrees(model: nn.Module, x: torch.Tensor, got: torch.Tensor) -> bool:
    """Whether `got` is what int8 makes of the model: near, and not equal."""
    with torch.no_grad():
        wanted = model(x)
    return bool(0 < (wanted - got).abs().max() < 0.05 * wanted.abs().max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["x86", "onednn"])
def test_torch_ao_computes_nearly_what_the_model_does(backend):
    pytest.importorskip("torch.ao.quantization")
    if backend not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this torch has no {backend}")
    model, x = small()
    before = torch.backends.quantized.engine
    converted = rivals.torch_ao(model, images(), backend)
    assert torch.backends.quantized.engine == before
    with torch.no_grad():
        assert agrees(model, x, converted(x))


@pytest.mark.filterwarnings("ignore")
def test_onnx_runtimes_own_int8_computes_nearly_what_the_model_does():
    pytest.importorskip("onnxruntime")
    model, x = small()
    assert agrees(model, x, torch.from_numpy(rivals.OnnxRuntimeInt8(model, x)(x)))


CHEAP = [name for name in rivals.RIVALS if name not in ("fp32_compiled", "torchao_pt2e")]  # they compile


@pytest.mark.filterwarnings("ignore")
def test_every_rival_computes_nearly_what_the_model_does():
    model, x = small()
    field = rivals.gather(rivals.Contest(model, images()), CHEAP)
    assert set(field.networks) | set(field.missing) == set(CHEAP) and set(field.seconds) == set(
        field.networks
    )
    with torch.no_grad():
        wanted = model(x)
        for name, network in field.networks.items():
            away = (torch.as_tensor(network(x)) - wanted).abs().max()
            limit = 1e-5 if name.endswith(("fp32", "folded")) else 0.05
            assert away <= limit * wanted.abs().max(), name


def test_a_rival_without_its_kernels_is_listed_with_the_reason(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(rivals, "bfloat16_is_fast", lambda device: False)
    names = ["fp32", "openvino", "openvino_bf16", "integer_openvino"]
    field = rivals.gather(rivals.Contest(small()[0], images()), names)
    assert list(field.networks) == ["fp32"] and list(field.missing) == names[1:]
    assert "no instructions for bfloat16" in field.missing["openvino_bf16"]
    assert "pip install -e '.[rivals]'" in field.missing["integer_openvino"]
    assert capsys.readouterr().out.count("is not here") == 3
    with pytest.raises(ConfigError, match="did you mean 'openvino'"):
        rivals.gather(rivals.Contest(small()[0], images()), ["openvinno"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["fp32_compiled", "torchao_pt2e"])
def test_compiled_rivals(name):
    pytest.importorskip("torchao")
    model, x = small()
    field = rivals.gather(rivals.Contest(model, images()), [name])
    if name in field.missing:
        pytest.skip(field.missing[name])
    with torch.no_grad():
        wanted = model(x)
    assert (field.networks[name](x) - wanted).abs().max() <= 0.05 * wanted.abs().max()

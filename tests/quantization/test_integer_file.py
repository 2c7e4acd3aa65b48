import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quantlib.errors import CheckpointError, ConfigError
from quantlib.quantization import quantized_file
from quantlib.quantization.integer import to_integer
from quantlib.quantization.integer_engine import Engine
from quantlib.quantization.integer_file import load_integer, save_integer
from quantlib.quantization.mixed import load_mixed
from quantlib.quantization.packed import load_packed, save_packed
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.requantize import ROUNDINGS
from quantlib.quantization.workflow import calibrate, prepare
from quantlib.subject.models import build
from tests.quantization.networks import Spellings, Tiny, randomize


def made(network, rounding="float", **options):
    config = QConfig(activation=Scheme(observer="minmax"), **options)
    prepared = calibrate(prepare(randomize(network()), config), [torch.randn(16, 3, 16, 16)])
    return to_integer(prepared, rounding)


@pytest.mark.parametrize("network", [Tiny, Spellings, lambda: build("squeezenet")])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_round_trip_is_exact_without_the_class_of_the_model(tmp_path, network, rounding):
    model, path, x = made(network, rounding), tmp_path / "net.safetensors", torch.randn(3, 3, 16, 16)
    save_integer(model, path)
    loaded = load_integer(path)
    assert loaded.rounding == rounding and [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    wanted, found = model.integers(x), loaded.integers(x)
    assert list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert torch.equal(loaded(x), model(x)) and loaded.weight_bytes == model.weight_bytes
    assert [str(step.module) for step in loaded.steps] == [str(step.module) for step in model.steps]
    again = tmp_path / "again.safetensors"
    save_integer(loaded, again)
    assert again.read_bytes() == path.read_bytes()


def test_a_quantized_result(tmp_path):
    model, x = made(Tiny, quantize_output=True), torch.randn(3, 3, 16, 16)
    save_integer(model, tmp_path / "net.safetensors")
    assert torch.equal(load_integer(tmp_path / "net.safetensors")(x), model(x))


@pytest.fixture
def saved(tmp_path):
    model = made(Tiny)
    save_integer(model, tmp_path / "tiny.safetensors")
    return model, tmp_path / "tiny.safetensors"


def test_it_holds_the_weights_once_and_a_description(saved):
    model, path = saved
    tensors = load_file(path)
    assert tensors["conv2.weight"].dtype == torch.int8 and tensors["conv2.bias"].dtype == torch.int32
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == model.weight_bytes
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["quantlib"])
    assert (description["format"], description["version"]) == ("quantlib-integer", 1)
    by_name = {step["name"]: step for step in description["steps"]}
    assert by_name["add"]["inputs"] == ["conv2", "shortcut"] and by_name["input"]["inputs"] == [""]
    assert by_name["conv2"]["operator"] == "IntegerConv2d" and by_name["conv2"]["settings"]["relu"] is False


def test_damaged_files_are_refused_by_name(saved, tmp_path):
    _, path = saved
    whole = path.read_bytes()
    for name, content in {
        "short.safetensors": whole[: len(whole) // 2],
        "empty.safetensors": b"",
        "weight.safetensors": whole[:-500] + bytes([whole[-500] ^ 1]) + whole[-499:],
        "setting.safetensors": whole.replace(rb"\"relu\": true", rb"\"relu\": null", 1),
    }.items():
        assert content != whole
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}.* damaged"):
            load_integer(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"There is no file .*save_integer\(model, path\)"):
        load_integer(tmp_path / "nowhere.safetensors")


def test_foreign_files_and_other_versions_are_refused(saved, tmp_path):
    _, path = saved
    tensors = load_file(path)
    foreign, other = tmp_path / "foreign.safetensors", tmp_path / "new.safetensors"
    save_file(tensors, foreign)
    with pytest.raises(CheckpointError, match="foreign.* no integer network"):
        load_integer(foreign)
    save_file(tensors, foreign, metadata={"quantlib": "[]"})
    with pytest.raises(CheckpointError, match="foreign.* no integer network"):
        load_integer(foreign)
    with pytest.raises(CheckpointError, match="tiny.* no mixed network"):
        load_mixed(path)
    quantized_file.write(other, "integer", 99, tensors, {})
    with pytest.raises(CheckpointError, match="new.* version 99 .* reads version 1"):
        load_integer(other)


def test_a_description_that_builds_nothing_is_refused(saved, tmp_path):
    _, path = saved
    tensors, description = quantized_file.read(path, "integer", 1)
    unknown = tmp_path / "unknown.safetensors"
    description["steps"][1]["operator"] = "IntegerSoftmax"
    quantized_file.write(unknown, "integer", 1, tensors, description)
    with pytest.raises(CheckpointError, match="unknown.* cannot be built .*IntegerSoftmax"):
        load_integer(unknown)
    quantized_file.write(unknown, "integer", 1, tensors, {"rounding": "float"})
    with pytest.raises(CheckpointError, match="unknown.* cannot be built"):
        load_integer(unknown)


def rewritten(path, change, tensors=None):
    """The file with another description, and the checksum that fits it: whoever writes it knows how."""
    found, description = quantized_file.read(path, "integer", 1)
    change(description)
    quantized_file.write(path, "integer", 1, {**found, **(tensors or {})}, description)


@pytest.mark.parametrize("name", ['q"+str(open("pwned","w"))+"', "a\\b", "line\nbreak"])
def test_a_hostile_name_never_becomes_python_source(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.safetensors"
    save_integer(made(Tiny), path)

    def rename(description):
        description["steps"][-1]["name"] = name

    rewritten(path, rename)
    with pytest.raises(CheckpointError, match="no layer is called"):
        load_integer(path)(torch.zeros(1, 3, 16, 16))
    assert not (tmp_path / "pwned").exists()


def changed(key, value):
    return lambda description: description.update({key: value})


@pytest.mark.parametrize(("change", "tensors"), [
    (changed("rounding", "foo"), {}),
    (lambda description: description["steps"][1].update(settings=None), {}),
    (lambda description: None, {"conv1.bias": torch.zeros(3, dtype=torch.int32)}),
    (lambda description: None, {"conv1.weight": torch.zeros(8, 3, 3, 3)}),
])  # fmt: skip
def test_a_description_that_fits_nothing_is_one_sentence(tmp_path, change, tensors):
    path = tmp_path / "net.safetensors"
    save_integer(made(Tiny), path)
    rewritten(path, change, tensors)
    with pytest.raises(CheckpointError, match="cannot be built"):
        load_integer(path)


@pytest.mark.parametrize("name", ["class", "block.None", "forward", "code", "graph", "block.state_dict"])
def test_a_name_that_a_graph_cannot_have_is_refused(tmp_path, name):
    path = tmp_path / "net.safetensors"
    save_integer(made(Tiny), path)
    rewritten(path, lambda description: description["steps"][-1].update(name=name))
    with pytest.raises(CheckpointError, match="no layer is called"):
        load_integer(path)


@pytest.mark.parametrize("grid", [
    [0.0, 0, 0, 255], [1.0, 0, 0, 10**30], [1e999, 0, 0, 255], [1.0, 0.5, 0, 255], [1.0, 256, 0, 255],
])  # fmt: skip
def test_grids_that_are_none_are_one_sentence(tmp_path, grid):
    path = tmp_path / "net.safetensors"
    save_integer(made(Tiny), path)
    rewritten(path, lambda description: description["steps"][1]["settings"].update(output_grid=grid))
    with pytest.raises(CheckpointError, match="cannot be built .*is no grid"):
        load_integer(path)


def test_a_description_that_is_endlessly_deep_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "deep.safetensors", metadata={"quantlib": "[" * 200_000})
    with pytest.raises(CheckpointError, match="deep.safetensors is damaged"):
        load_integer(tmp_path / "deep.safetensors")


def test_an_engine_is_written_as_its_reference(tmp_path):
    pytest.importorskip("onnxruntime")
    reference = made(Tiny)
    save_integer(Engine(reference), tmp_path / "engine.safetensors")
    save_packed(Engine(reference), tmp_path / "packed.safetensors")
    x = torch.randn(2, 3, 16, 16)
    for back in (load_integer(tmp_path / "engine.safetensors"), load_packed(tmp_path / "packed.safetensors")):
        assert torch.equal(back(x), reference(x))
    for save in (save_integer, save_packed):
        with pytest.raises(ConfigError, match="kind='integer'"):
            save(Tiny(), tmp_path / "none.safetensors")

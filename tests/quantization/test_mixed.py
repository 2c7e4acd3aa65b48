import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from quantlib.errors import CheckpointError, ConfigError
from quantlib.quantization import mixed as mixed_module
from quantlib.quantization import quantized_file
from quantlib.quantization.mixed import MixedConv2d, Quantize, load_mixed, save_mixed
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.subject.models import build
from tests.quantization.networks import Spellings, Tiny, randomize

MINMAX = QConfig(activation=Scheme(observer="minmax"))


def made(network=Tiny, config=MINMAX, **options):
    prepared = prepare(randomize(network()), config, **options)
    return calibrate(prepared, [torch.randn(32, 3, 16, 16)])


@pytest.mark.parametrize("network", [Tiny, Spellings])
@pytest.mark.parametrize("symmetric", [False, True])
def test_close_to_the_float_network(network, symmetric):
    config = QConfig(activation=Scheme(symmetric=symmetric, observer="minmax"))
    prepared = made(network, config)
    x = torch.randn(5, 3, 16, 16)
    wanted = prepared.graph_module(x)
    assert (convert(prepared, "mixed")(x) - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_weights_are_int8_and_borders_are_float():
    mixed = convert(made(), "mixed")
    kept = dict(mixed.graph_module.state_dict())
    assert all(value.dtype == torch.int8 for name, value in kept.items() if name.endswith(".weight"))
    assert not list(mixed.parameters())
    seen = []
    for module in mixed.modules():
        if isinstance(module, (MixedConv2d, Quantize)):
            module.register_forward_hook(lambda m, i, o: seen.append((type(m), i[0].dtype, o.dtype)))
    mixed(torch.randn(2, 3, 16, 16))
    assert set(seen) == {
        (Quantize, torch.float32, torch.uint8),
        (MixedConv2d, torch.uint8, torch.float32),
    }


def test_a_tensor_is_quantized_once_for_all_its_readers():
    mixed = convert(made(), "mixed")
    names = [n.target for n in mixed.graph_module.graph.nodes if str(n.target).endswith("_quantize")]
    assert names.count("conv1_quantize") == 1  # read by conv2 and by the shortcut
    assert sorted(names) == sorted(set(names)) and "conv3_quantize" not in names


@pytest.mark.parametrize("sub_batch", [1, 3, 8, 64])
def test_sub_batches_do_not_change_a_bit(sub_batch):
    mixed = convert(made(), "mixed")
    x = torch.randn(8, 3, 16, 16)
    wanted = mixed(x)
    mixed.sub_batch = sub_batch
    assert torch.equal(mixed(x), wanted)
    assert torch.equal(mixed(x.contiguous(memory_format=torch.channels_last)), wanted)


def test_another_image_size_packs_the_weights_anew():
    mixed = convert(made(), "mixed")
    first = mixed(torch.ones(1, 3, 16, 16))
    mixed(torch.ones(2, 3, 24, 24))
    assert torch.equal(mixed(torch.ones(1, 3, 16, 16)), first)


def test_the_input_is_not_overwritten_by_in_place_additions():
    mixed, x = convert(made(Spellings), "mixed"), torch.randn(4, 3, 16, 16)
    before = x.clone()
    assert torch.equal(mixed(x), mixed(x)) and torch.equal(x, before)


def test_deep_copy():
    mixed, x = convert(made(), "mixed"), torch.randn(2, 3, 16, 16)
    assert torch.equal(copy.deepcopy(mixed)(x), mixed(x))


def test_asymmetric_weights_are_refused():
    with pytest.raises(ConfigError, match=r"'conv1' have a zero point.*symmetric=True"):
        convert(made(config=QConfig(weight=Scheme(), activation=Scheme())), "mixed")


def test_layers_without_a_grid_at_their_input_are_refused():
    with pytest.raises(ConfigError, match="'conv1' has an activation scheme of None at its input 'input'"):
        convert(made(config=QConfig(activation=None)), "mixed")
    with pytest.raises(ConfigError, match="one grid per tensor"):
        config = QConfig(activation=Scheme(per_channel=True))
        convert(made(config=config), "mixed")


@pytest.mark.parametrize("symmetric", [False, True])
def test_without_vnni_it_warns_and_uses_seven_bits(monkeypatch, symmetric):
    prepared = made(config=QConfig(activation=Scheme(symmetric=symmetric, observer="minmax")))
    monkeypatch.setattr(mixed_module, "has_vnni", lambda: False)
    with pytest.warns(UserWarning, match="no VNNI.*7 bits"):
        mixed = convert(prepared, "mixed")
    steps = [module for module in mixed.modules() if isinstance(module, Quantize)]
    assert steps and all(step.quant_max <= 127 and step.quant_min >= 0 for step in steps)
    x = torch.randn(4, 3, 16, 16)
    wanted = prepared.graph_module(x)
    assert (mixed(x) - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_a_file_of_another_machine_warns_where_its_sums_could_saturate(saved, monkeypatch, recwarn):
    _, path = saved
    load_mixed(path)
    assert not recwarn.list
    monkeypatch.setattr(mixed_module, "has_vnni", lambda: False)
    with pytest.warns(UserWarning, match="no VNNI.*r20.safetensors has 8-bit activations"):
        load_mixed(path)


@pytest.fixture
def saved(tmp_path):
    mixed = convert(made(lambda: build("resnet20")), "mixed")
    save_mixed(mixed, tmp_path / "r20.safetensors")
    return mixed, tmp_path / "r20.safetensors"


def test_round_trip_is_bit_exact_and_self_describing(saved):
    mixed, path = saved
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(load_mixed(path)(x), mixed(x))
    assert path.stat().st_size < 300_000 and not list(path.parent.glob("*.part"))
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["quantlib"])["architecture"] == "resnet20"


def test_other_networks_are_passed_in(tmp_path):
    mixed, x = convert(made(), "mixed"), torch.randn(2, 3, 16, 16)
    save_mixed(mixed, tmp_path / "tiny.safetensors")
    assert torch.equal(load_mixed(tmp_path / "tiny.safetensors", Tiny().eval())(x), mixed(x))
    with pytest.raises(CheckpointError, match=r"pass it as load_mixed\(path, model="):
        load_mixed(tmp_path / "tiny.safetensors")
    with pytest.raises(CheckpointError, match="another architecture than Spellings"):
        load_mixed(tmp_path / "tiny.safetensors", Spellings().eval())


def test_a_layer_in_float_survives_the_round_trip(tmp_path):
    config = QConfig(activation=Scheme(observer="minmax"), by_name={"fc": None, "conv1": None})
    mixed, x = convert(made(config=config), "mixed"), torch.randn(2, 3, 16, 16)
    save_mixed(mixed, tmp_path / "tiny.safetensors")
    assert torch.equal(load_mixed(tmp_path / "tiny.safetensors", Tiny().eval())(x), mixed(x))


def test_damaged_files_are_refused_by_name(saved, tmp_path):
    _, path = saved
    whole = path.read_bytes()
    for name, content in {
        "short.safetensors": whole[: len(whole) // 2],
        "empty.safetensors": b"",
        "noise.safetensors": b"\xff" * 1000,
        "flipped.safetensors": whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}.* damaged"):
            load_mixed(tmp_path / name)
    with pytest.raises(CheckpointError, match="There is no file"):
        load_mixed(tmp_path / "nowhere.safetensors")


def test_foreign_files_and_other_versions_are_refused(saved, tmp_path):
    _, path = saved
    tensors = load_file(path)
    save_file(tensors, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no mixed network"):
        load_mixed(tmp_path / "foreign.safetensors")
    description = {"format": "quantlib-mixed", "version": 99}
    save_file(tensors, tmp_path / "new.safetensors", metadata={"quantlib": json.dumps(description)})
    with pytest.raises(CheckpointError, match="version 99 .* reads version 1"):
        load_mixed(tmp_path / "new.safetensors")


@pytest.mark.parametrize("change", [
    lambda description, tensors: description.pop("layers"),
    lambda description, tensors: description.update(grids={"nowhere": [1.0, 0, 0, 255]}),
    lambda description, tensors: description.update(grids={"fc": [1.0, 0]}),
    lambda description, tensors: tensors.pop("fc.weight_scale"),
    lambda description, tensors: tensors.update({"extra": torch.zeros(1)}),
])  # fmt: skip
def test_a_description_that_fits_nothing_is_one_sentence(saved, tmp_path, change):
    _, path = saved
    tensors, description = quantized_file.read(path, "mixed", 1)
    change(description, tensors)
    quantized_file.write(tmp_path / "odd.safetensors", "mixed", 1, tensors, description)
    with pytest.raises(CheckpointError, match="odd.safetensors describes a network that cannot be built"):
        load_mixed(tmp_path / "odd.safetensors")


def test_an_operator_that_looks_at_several_images_gets_them_all():
    class Across(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
            self.norm = nn.BatchNorm2d(4, track_running_stats=False)

        def forward(self, x):
            return self.last(self.norm(self.conv(x)))

    torch.manual_seed(0)
    x = torch.randn(40, 3, 8, 8) * torch.linspace(0.1, 3, 40)[:, None, None, None]
    prepared = calibrate(prepare(Across().eval(), unsupported="float"), [x])
    mixed, simulated = convert(prepared, "mixed"), convert(prepared)
    assert not mixed.splits and convert(made(), "mixed").splits
    with torch.no_grad():
        assert (mixed(x) - simulated(x)).norm() < 0.03 * simulated(x).norm()


@pytest.mark.parametrize("tensor", ["fc.weight_scale", "fc.bias", "conv1.weight_scale", "conv1.weight"])
def test_tensors_that_do_not_fit_are_never_handed_to_a_kernel(saved, tmp_path, tensor):
    _, path = saved
    tensors, description = quantized_file.read(path, "mixed", 1)
    for wrong in (tensors[tensor][:2].clone(), tensors[tensor].to(torch.float64)):
        odd = {**tensors, tensor: wrong}
        quantized_file.write(tmp_path / "odd.safetensors", "mixed", 1, odd, description)
        with pytest.raises(CheckpointError, match="do not fit"):
            load_mixed(tmp_path / "odd.safetensors")


def test_saving_moves_nobodys_random_numbers_and_takes_only_what_it_can(tmp_path):
    mixed = convert(made(), "mixed")
    torch.manual_seed(0)
    wanted = torch.rand(2)
    torch.manual_seed(0)
    save_mixed(mixed, tmp_path / "a.safetensors")
    assert torch.equal(torch.rand(2), wanted)
    with pytest.raises(ConfigError, match="kind='mixed'"):
        save_mixed(convert(made()), tmp_path / "b.safetensors")


def test_a_network_in_double_precision_runs():
    model = Tiny().double().eval()
    x = torch.randn(4, 3, 16, 16)
    prepared = calibrate(prepare(model), [x.double()])
    wanted = convert(prepared)(x.double())
    for kind in ("mixed", "integer"):
        assert (convert(prepared, kind)(x) - wanted).norm() < 0.02 * wanted.norm(), kind

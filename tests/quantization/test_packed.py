import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from quantlib.errors import CheckpointError, ConfigError
from quantlib.quantization import quantized_file
from quantlib.quantization.integer import to_integer
from quantlib.quantization.integer_file import save_integer
from quantlib.quantization.packed import bits_needed, load_packed, pack, packed_layers, save_packed, unpack
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, prepare
from tests.quantization.networks import Spellings, Tiny, randomize


def numpy_packed(values, bits):
    """The same stream by numpy.packbits, which nobody here wrote."""
    spread = (np.asarray(values)[:, None] >> np.arange(bits)) & 1
    return np.packbits(spread.astype(np.uint8).flatten(), bitorder="little")


def test_hand_vectors():
    # 4 bits: a byte holds two, the first in the low nibble. -1 is 1111, 5 is 0101.
    assert pack(torch.tensor([-1, 5, 3]), 4).tolist() == [0x5F, 0x03]
    # 3 bits: 1 = 001, -1 = 111, 2 = 010, -4 = 100; from the right: 100 010 111 001
    assert pack(torch.tensor([1, -1, 2, -4]), 3).tolist() == [0b10111001, 0b1000]
    # 2 bits: -1 = 11, 0 = 00, 1 = 01, -2 = 10
    assert pack(torch.tensor([-1, 0, 1, -2, 1]), 2).tolist() == [0b10010011, 0b01]


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), signed=st.booleans(), data=st.data())
def test_round_trip_and_numpy(bits, signed, data):
    low = -(2 ** (bits - 1)) if signed else 0
    values = data.draw(st.lists(st.integers(low, low + 2**bits - 1), max_size=50))
    q = torch.tensor(values, dtype=torch.int8 if signed else torch.uint8)
    packed = pack(q, bits)
    assert packed.dtype == torch.uint8 and packed.numel() == -(-len(values) * bits // 8)
    assert packed.tolist() == numpy_packed(q.long().numpy(), bits).tolist()
    assert torch.equal(unpack(packed, bits, q.shape, signed), q)


def test_shapes_and_mistakes():
    q = torch.randint(-4, 4, (5, 3, 3, 3), dtype=torch.int8)
    assert torch.equal(unpack(pack(q, 3), 3, q.shape), q) and bits_needed(q) == 3
    widths = {2: [0, 1, -2], 3: [2], 4: [-8, 7], 5: [-9, 0], 8: [-128]}
    assert all(bits_needed(torch.tensor(v, dtype=torch.int8)) == bits for bits, v in widths.items())
    with pytest.raises(ConfigError, match="3 bits do not hold the values -5 to 1"):
        pack(torch.tensor([1, -5]), 3)
    with pytest.raises(ConfigError, match="4 bits do not hold the values -1 to 15; pass more bits"):
        pack(torch.tensor([-1, 15]), 4)  # each fits, signed or unsigned, but not both
    with pytest.raises(ConfigError, match="from 1 to 8"):
        pack(q, 9)
    with pytest.raises(ConfigError, match="135 values of 3 bits are 51 bytes, not 50"):
        unpack(pack(q, 3)[:-1], 3, q.shape)


def made(network, bits, **options):
    weight = Scheme(bits=bits, symmetric=True, per_channel=True, narrow_range=True)
    config = QConfig(weight, Scheme(bits=max(bits, 4), observer="minmax"), **options)
    return to_integer(calibrate(prepare(randomize(network()), config), [torch.randn(16, 3, 16, 16)]))


@pytest.mark.parametrize("network", [Tiny, Spellings])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_file_round_trip(tmp_path, network, bits):
    model, path, x = made(network, bits), tmp_path / "net.safetensors", torch.randn(3, 3, 16, 16)
    save_packed(model, path)
    loaded = load_packed(path)
    wanted, found = model.integers(x), loaded.integers(x)
    assert list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert torch.equal(loaded(x), model(x))
    state, again = model.graph_module.state_dict(), loaded.graph_module.state_dict()
    assert list(again) == list(state) and all(torch.equal(again[key], state[key]) for key in state)


def test_weights_take_the_bits_they_need(tmp_path):
    eight = QConfig(Scheme(symmetric=True, per_channel=True, narrow_range=True))
    model, path, plain = made(Tiny, 4, by_name={"fc": eight}), tmp_path / "packed", tmp_path / "plain"
    save_packed(model, path)
    save_integer(model, plain)
    bits = {"conv1": (4, 108), "conv2": (4, 576), "shortcut": (4, 64), "conv3": (4, 1152), "fc": (8, 160)}
    assert packed_layers(path) == bits
    stored = load_file(path)
    assert all(stored[f"{name}.weight"].numel() == size for name, (_, size) in bits.items())
    assert stored["conv1.weight_scale"].shape == (8,) and stored["conv1.bias"].dtype == torch.int32
    assert plain.stat().st_size - path.stat().st_size > 1500


def test_bad_files_are_refused_by_name(tmp_path):
    good = tmp_path / "good.safetensors"
    save_packed(made(Tiny, 3), good)
    whole = good.read_bytes()
    for name, content in {
        "short": whole[: len(whole) // 2],
        "cut": whole[:-1],
        "flipped": whole[:-300] + bytes([whole[-300] ^ 4]) + whole[-299:],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}.* damaged"):
            load_packed(tmp_path / name)
    tensors, read = quantized_file.read(good, "packed", 1)
    description = {key: read[key] for key in ("rounding", "steps", "packed")}
    for name, changed in {
        "shape": {"packed": {**description["packed"], "fc": [3, [10, 17]]}},
        "width": {"packed": {**description["packed"], "fc": [4, [10, 16]]}},
        "nothing": {"packed": None},
    }.items():
        bad = tmp_path / name
        quantized_file.write(bad, "packed", 1, tensors, {**description, **changed})
        with pytest.raises(CheckpointError, match=f"{name} cannot be unpacked"):
            load_packed(bad)
    quantized_file.write(tmp_path / "new", "packed", 2, tensors, description)
    with pytest.raises(CheckpointError, match="new is of version 2 .* reads version 1"):
        load_packed(tmp_path / "new")
    save_integer(made(Tiny, 3), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"other is no packed network .* save_packed\(model, path\)"):
        load_packed(tmp_path / "other")
    with pytest.raises(CheckpointError, match="There is no file"):
        load_packed(tmp_path / "nowhere")


def test_a_file_that_does_not_say_how_it_is_packed_is_one_sentence(tmp_path):
    path = tmp_path / "net.safetensors"
    save_packed(made(Tiny, 4), path)
    tensors, description = quantized_file.read(path, "packed", 1)
    for wrong in ({**description, "packed": {"conv1": [4, [-10, -16]]}}, {**description, "packed": None}):
        quantized_file.write(path, "packed", 1, tensors, wrong)
        with pytest.raises(CheckpointError, match="save it again"):
            load_packed(path)
    with pytest.raises(CheckpointError, match="does not say how it is packed"):
        packed_layers(path)

"""The compressed file: bit-identical networks, and ten thousand broken files, each refused or harmless."""

import hashlib
import resource
import signal
import time
import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantlib.compression import archive, lanes
from quantlib.compression.archive import CHECKSUM, compress, decompress
from quantlib.compression.compressed import compressed_files
from quantlib.compression.norms import round_mantissa, simplify_norms
from quantlib.compression.records import Reader, decode, distinct, encode, varint
from quantlib.compression.sharing import share
from quantlib.errors import CheckpointError, ConfigError, NonFiniteError
from quantlib.subject.checkpoints import ROOT
from quantlib.subject.models import build

HEAD = 5 + CHECKSUM


def small(sparse=True, seed=0):
    """Two convolutions, a norm, a classifier; a layer sparse and shared, one dense and shared, one raw."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    model.train()(torch.randn(8, 3, 4, 4))
    with torch.no_grad():
        if sparse:
            model[0].weight.mul_(torch.rand(model[0].weight.shape) > 0.8).copy_(
                share(model[0].weight, 4).weight
            )
            model[3].weight.copy_(share(model[3].weight, 3).weight)
    return model.eval()


def images(n=5):
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(7))


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("sparse", [True, False])
def test_a_network_of_ones_own_comes_back(tmp_path, sparse):
    model = small(sparse)
    report = compress(model, tmp_path / "net.qldc")
    assert report.bytes == (tmp_path / "net.qldc").stat().st_size
    back = decompress(tmp_path / "net.qldc", small(seed=1))
    assert same(model, back) and torch.equal(model(images()), back(images()))
    arrays = {size.name: size for size in report.arrays}
    assert (arrays["0.weight"].places > 0) == sparse and arrays["5.weight"].distinct == 48
    parts = sum(size.total + 2 for size in report.arrays)  # the way's byte and the repeats' byte
    assert 20 <= report.bytes - parts <= 60  # header and counters


@pytest.mark.parametrize("name", ["resnet20", "squeezenet"])
def test_the_courses_networks_open_without_a_model(tmp_path, name):
    torch.manual_seed(0)
    model = build(name)
    model.train()(torch.randn(4, 3, 32, 32))
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.dim() > 1):
            limit = weight.abs().flatten().kthvalue(int(0.9 * weight.numel())).values
            weight.copy_(share(weight * (weight.abs() > limit), 16).weight)
    model = simplify_norms(model).eval().to(memory_format=torch.channels_last)
    report = compress(model, tmp_path / "net.qldc", name)
    back = decompress(tmp_path / "net.qldc")
    x = torch.randn(3, 3, 32, 32).to(memory_format=torch.channels_last)
    assert torch.equal(model(x), back(x)) and same(model, back)
    assert report.bytes < 0.05 * 4 * sum(p.numel() for p in model.parameters())


ARRAYS = st.lists(
    st.sampled_from([0.0, -0.0, 1.5, -2.25, 3e-41, float("inf"), float("nan"), 0.1]), max_size=400
)


@settings(deadline=None, max_examples=150)
@given(ARRAYS, st.integers(0, 30))
def test_records_are_lossless_but_for_the_sign_of_zero(values, zeros):
    array = np.array([v for value in values for v in [value] + [0.0] * zeros][:3000], np.float32)
    record, sizes = encode("x", array)
    assert len(record) == sizes.total + 1
    reader = Reader(record + b"more")
    pending = decode(reader, len(array))
    back = pending.finish(lanes.read(pending.streams))
    assert reader.place == len(record)
    assert np.array_equal(back.view(np.uint32), (array + np.float32(0)).view(np.uint32))


@settings(deadline=None, max_examples=100)
@given(ARRAYS)
def test_distinct_is_numpys_unique(values):
    array = np.array(values, np.float32) + np.float32(0)
    patterns, symbols = distinct(array)
    theirs, inverse = np.unique(array.view(np.uint32), return_inverse=True)
    assert np.array_equal(patterns, theirs) and np.array_equal(symbols, inverse)


def test_a_zero_of_either_sign_makes_one_record():
    assert (
        encode("x", np.array([0.0, 1, -0.0, 0] * 9, np.float32))[0]
        == encode("x", np.array([0, 1, 0, 0] * 9, np.float32))[0]
    )


@given(st.integers(0, 2**34))
def test_varints_come_back(number):
    assert Reader(varint(number)).varint() == number


# Broken files --------------------------------------------------------------------------------------------


def sealed(content):
    """The file with a checksum that fits: what someone who means harm would write."""
    content = bytearray(content)
    content[5:HEAD] = hashlib.sha256(content[HEAD:]).digest()[:CHECKSUM]
    return bytes(content)


def mutated(content, rng):
    """One of: bits flipped, cut, doubled, bytes set to extremes, a piece moved."""
    content = bytearray(content)
    kind = rng.integers(5)
    place, other = (int(p) for p in rng.integers(HEAD, len(content), 2))
    if kind == 0:
        for where in rng.integers(HEAD, len(content), rng.integers(1, 4)):
            content[where] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del content[place:]
    elif kind == 2:
        content[place:place] = content[place : place + int(rng.integers(1, 40))]
    elif kind == 3:
        content[place : place + int(rng.integers(1, 6))] = bytes([int(rng.choice([0, 127, 128, 255]))]) * 5
    else:
        content[place : place + 8] = content[other : other + 8]
    return bytes(content)


def refused(path, content, model):
    """Whether the file is refused in one sentence; anything but CheckpointError fails the test."""
    path.write_bytes(content)
    try:
        decompress(path, model)
    except CheckpointError as error:
        assert str(error).startswith(str(path)) and str(error).count("\n") == 0 and len(str(error)) < 400
        return True
    return False


def hang(signum, frame):
    raise TimeoutError("a damaged file keeps the reader busy for two minutes")


@pytest.mark.parametrize("seal", [False, True], ids=["by accident", "on purpose"])
def test_ten_thousand_mutations(tmp_path, seal):
    model = small()
    compress(model, tmp_path / "net.qldc")
    whole = (tmp_path / "net.qldc").read_bytes()
    target, rng, count = small(), np.random.default_rng(0), 5000
    slowest, harmless = 0.0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, hang)
    signal.alarm(120)
    try:
        for _ in range(count):
            broken = mutated(whole, rng)
            if broken == whole:
                continue
            began = time.thread_time()
            harmless += not refused(tmp_path / "broken.qldc", sealed(broken) if seal else broken, target)
            slowest = max(slowest, time.thread_time() - began)
    finally:
        signal.alarm(0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # A sealed file may be another valid network: changed values, same structure.
    assert harmless == 0 if not seal else harmless < count
    assert slowest < 2 and peak < 50_000, (slowest, peak)  # kB


def test_every_truncation_and_every_excess_is_refused(tmp_path):
    model = small()
    compress(model, tmp_path / "net.qldc")
    whole = (tmp_path / "net.qldc").read_bytes()
    for size in range(len(whole)):
        assert refused(tmp_path / "cut.qldc", whole[:size], model)
        assert size < HEAD or refused(tmp_path / "cut.qldc", sealed(whole[:size]), model)
    assert refused(tmp_path / "long.qldc", whole + b"\0", model)
    assert refused(tmp_path / "long.qldc", sealed(whole + b"\0"), model)
    assert refused(tmp_path / "long.qldc", whole + bytes(10**6), model)


def test_other_files_are_refused_by_name(tmp_path):
    model = small()
    path = tmp_path / "net.qldc"
    with pytest.raises(CheckpointError, match="No such file or directory; write it with compress"):
        decompress(path, model)
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(CheckpointError, match="no compressed network"):
        decompress(path, model)
    compress(model, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\x09" + whole[5:])
    with pytest.raises(CheckpointError, match="version 9, and this quantlib reads version 1"):
        decompress(path, model)
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="another architecture"):
        decompress(path, nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="pass the model"):
        decompress(path)
    with pytest.raises(ConfigError, match="no architecture 'resnet51'"):
        compress(model, path, "resnet51")
    with pytest.raises(ConfigError, match="is no 'resnet50' as `build` makes it"):
        compress(build("resnet20"), path, "resnet50")
    with pytest.raises(ConfigError, match="float64"):
        compress(nn.Linear(2, 2).double(), path)


# Norms -----------------------------------------------------------------------------------------------------


def test_simplified_norms_compute_the_same_up_to_rounding():
    model = small(sparse=False)
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
        model[1].bias.normal_()
    fine = simplify_norms(model, mantissa=10)
    assert fine[1].running_mean.count_nonzero() == 0 and torch.all((fine[1].running_var + fine[1].eps) == 1)
    assert torch.allclose(model(images()), fine(images()), atol=5e-3)
    assert model[1].running_mean.count_nonzero() > 0, "the original is left alone"
    rough = simplify_norms(model, mantissa=2)
    for place in (1, 3, 5):  # a float32 has 23 bits of mantissa: all but two are zero
        assert torch.all(rough[place].bias.view(torch.int32) & (2**21 - 1) == 0)
        assert torch.allclose(rough[place].bias, fine[place].bias, rtol=2**-3)
    errors = [
        float((simplify_norms(model, bits)(images()) - model(images())).abs().mean().detach())
        for bits in (2, 5, 8)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_rounded_mantissas_against_numpy():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 10
    assert torch.equal(
        round_mantissa(values, 10), torch.from_numpy(values.numpy().astype(np.float16)).float()
    )
    for bits in (0, 3, 7):
        relative = ((round_mantissa(values, bits) - values) / values).abs()
        assert 0.6 * 2.0 ** -(bits + 1) < relative.max() <= 2.0 ** -(bits + 1)
        assert torch.all(round_mantissa(values, bits).half().view(torch.int16) & (2 ** (10 - bits) - 1) == 0)
    with pytest.raises(ConfigError, match="0 to 10"):
        round_mantissa(values, 11)


def test_counters_come_back_and_as_many_numbers_of_other_shapes_are_refused(tmp_path):
    """The target's counters differ: `small` trains both networks for one batch, hiding a lost counter."""
    model, target = small(), small(seed=1)
    for network, start in ((model, 2**40 + 3), (target, 0)):
        network[1].num_batches_tracked.fill_(start)
        network.register_buffer("ages", torch.arange(6, dtype=torch.int32).view(2, 3) * -start % 1000)
    compress(model, tmp_path / "net.qldc")
    back = decompress(tmp_path / "net.qldc", target)
    assert back[1].num_batches_tracked.item() == 2**40 + 3  # more than 32 bits hold
    assert back.ages.tolist() == model.ages.tolist() and back.ages.dtype == torch.int32
    wide = nn.Sequential(nn.Linear(4, 2, bias=False))
    compress(wide, tmp_path / "wide.qldc")
    for other in (nn.Sequential(nn.Linear(2, 4, bias=False)), nn.Sequential(nn.ReLU(), wide[0])):
        with pytest.raises(CheckpointError, match="another architecture"):
            decompress(tmp_path / "wide.qldc", other)


def test_a_record_by_hand():
    """What old files hold: a change of the format that no new version announces fails here."""
    record, _ = encode("x", np.array([0, 1.5, 1.5, 0] * 4, np.float32))
    assert record.hex() == (
        "05"  # dense, values as float16
        "02" "0000" "003e"  # two values, 0.0 and 1.5
        "10" "02" "02"  # 16 symbols, 2 words, 2 bytes of words
        "c0"  # lengths 1 and 1: changes +1 and 0, zigzag 2 and 0, unary 110 0
        "6666"  # 0110 four times
    )  # fmt: skip


def test_a_hostile_file_asks_for_no_memory(tmp_path):
    """Lengths of gigabytes at every place where a number stands, with a checksum that fits.

    numpy reports to tracemalloc what it asks for; resident memory would not grow before it is touched.
    """
    model = small()
    compress(model, tmp_path / "net.qldc")
    whole, huge = (tmp_path / "net.qldc").read_bytes(), b"\xff\xff\xff\xff\x0f"
    tracemalloc.start()
    try:
        for place in range(HEAD, len(whole)):
            for rest in (place, place + 1):
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                refused(tmp_path / "hostile.qldc", sealed(whole[:place] + huge + whole[rest:]), model)
                assert tracemalloc.get_traced_memory()[1] - before < 5e6, place
    finally:
        tracemalloc.stop()


def test_a_refused_file_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    """The last record turns out to be wrong when all others have been read."""
    compress(small(), tmp_path / "net.qldc")
    pending, real = [], archive.decode

    class Wrong(NamedTuple):
        streams: list

        def finish(self, symbols):
            raise CheckpointError("it has another number of values")

    def decode_but_the_last(reader, size):
        pending.append(real(reader, size))
        return Wrong(pending[-1].streams) if len(pending) == groups else pending[-1]

    groups = len(archive._groups(small().state_dict()))
    monkeypatch.setattr(archive, "decode", decode_but_the_last)
    target = small(seed=5)
    with pytest.raises(CheckpointError, match="another number of values"):
        decompress(tmp_path / "net.qldc", target)
    assert same(target, small(seed=5)) and not same(target, small())


def test_nobodys_random_numbers_are_moved(tmp_path):
    model = build("resnet20").eval()
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    compress(model, tmp_path / "net.qldc", "resnet20")
    decompress(tmp_path / "net.qldc")
    assert torch.equal(torch.rand(3), wanted)


def test_what_half_precision_cannot_hold_is_named():
    with pytest.raises(NonFiniteError, match="65,504"):
        round_mantissa(torch.tensor([1.0, 7e4]), 5)
    assert round_mantissa(torch.tensor([torch.inf, 6e4]), 10).tolist() == [torch.inf, 6e4]


@pytest.mark.parametrize("name", sorted(compressed_files()))
def test_what_is_shipped_opens(name, tmp_path):
    """Sparse records that no test writes by hand: decoded and encoded again they are the same bytes."""
    about = compressed_files()[name]
    model = decompress(ROOT / about["file"])
    filters = [p.detach() for p in model.parameters() if p.dim() == 4]
    assert max(len(p.unique()) for p in filters) <= about["clusters"] + 1
    compress(model, tmp_path / "again.qldc", about["file"].split("_")[0])
    assert (tmp_path / "again.qldc").read_bytes() == (ROOT / about["file"]).read_bytes()

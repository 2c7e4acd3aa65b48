"""The images are the published ones, the splits do not overlap, and normalization is torchvision's."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from quantlib.errors import ConfigError, DataError
from quantlib.subject import data, layout, slices
from quantlib.subject.data import Images, batches, load, normalize
from tests.subject import cifar_stub

SLICE_SIZES = {"calibration": 1000, "validation": 500, "test": 1000}

full_data = pytest.mark.skipif(layout.locate() is None, reason="all of CIFAR-10 is not on this machine")


# The shipped slice


@pytest.mark.parametrize(("split", "n"), SLICE_SIZES.items())
def test_slice_is_stratified_bytes(split, n):
    images = load(split)
    assert images.pixels.shape == (n, 3, 32, 32)
    assert images.pixels.dtype == torch.uint8
    assert images.labels.dtype == torch.int64
    assert images.labels.bincount().tolist() == [n // 10] * 10
    assert (images.split, images.source) == (split, "slice")
    assert len(images.md5) == 32


def test_slice_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in slices.FOLDER.iterdir()) < 6_000_000


def test_slice_images_are_all_different_and_look_like_photographs():
    seen = set()
    for split in SLICE_SIZES:
        pixels = load(split).pixels
        seen |= {image.numpy().tobytes() for image in pixels}
        # A transposed or shuffled mosaic would lose this: neighbouring pixels of a photograph are alike.
        steps = pixels.float().diff(dim=3).abs().mean(), pixels.float().diff(dim=2).abs().mean()
        assert max(steps) < 20
    assert len(seen) == sum(SLICE_SIZES.values())


def test_slice_prefix_is_not_sorted_by_class():
    assert len(load("test").labels[:50].unique()) == 10


def test_calibration_never_meets_validation():
    calibration, validation = set(slices.indices("calibration")), set(slices.indices("validation"))
    assert len(calibration) == 1000
    assert len(validation) == 500
    assert not calibration & validation


@pytest.fixture
def slice_copy(tmp_path):
    return shutil.copytree(slices.FOLDER, tmp_path / "slice")


def test_changed_pixel_is_refused(slice_copy):
    path = slice_copy / "validation.webp"
    with PilImage.open(path) as picture:
        pixels = np.array(picture)
    pixels[100, 100, 1] ^= 1
    PilImage.fromarray(pixels).save(path, lossless=True, exact=True)
    with pytest.raises(DataError, match=r"validation\.webp are damaged; reinstall"):
        slices.read("validation", slice_copy)


def test_changed_label_is_refused(slice_copy):
    path = slice_copy / "slice.json"
    about = json.loads(path.read_text())
    about["splits"]["test"]["labels"][3] = (about["splits"]["test"]["labels"][3] + 1) % 10
    path.write_text(json.dumps(about))
    with pytest.raises(DataError, match="damaged"):
        slices.read("test", slice_copy)


@pytest.mark.parametrize("harm", ["truncate", "remove", "json"])
def test_unreadable_slice_says_what_to_do(slice_copy, harm):
    path = slice_copy / "test.webp"
    if harm == "truncate":
        path.write_bytes(path.read_bytes()[:1000])
    elif harm == "remove":
        path.unlink()
    else:
        (slice_copy / "slice.json").write_text("{")
    with pytest.raises(DataError, match="reinstall quantlib"):
        slices.read("test", slice_copy)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_mosaic_round_trip(rows, seed):
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (rows * slices.COLUMNS, 3073), dtype=np.uint8)
    assert np.array_equal(slices.from_mosaic(slices.to_mosaic(records), records[:, 0]), records)


def test_mosaic_by_hand():
    records = np.zeros((100, 3073), dtype=np.uint8)
    records[51, 1 + 1024 + 32 * 2 + 5] = 77  # image 51, green, row 2, column 5
    mosaic = slices.to_mosaic(records)
    assert mosaic.shape == (64, 1600, 3)
    assert mosaic[32 + 2, 32 + 5, 1] == 77
    assert mosaic.sum() == 77


# Against the full set


@full_data
@pytest.mark.full_data
def test_slice_equals_full_set():
    for split in SLICE_SIZES:
        full = load("test" if split == "test" else "train_all", "full").subset(slices.indices(split))
        shipped = load(split)
        assert torch.equal(full.pixels, shipped.pixels)
        assert torch.equal(full.labels, shipped.labels)
        assert full.md5 == shipped.md5


@full_data
@pytest.mark.full_data
def test_slice_is_what_its_seeds_draw():
    labels = load("train_all", "full").labels.numpy()
    drawn = slices.draw(labels, load("test", "full").labels.numpy())
    train, validation = slices.split_indices(labels)
    for split in SLICE_SIZES:
        assert np.array_equal(drawn[split], slices.indices(split))
    assert set(slices.indices("calibration")) <= set(train)
    assert set(slices.indices("validation")) <= set(validation)


@full_data
@pytest.mark.full_data
def test_constants_are_those_of_the_training_images():
    pixels = load("train_all", "full").pixels
    for channel in range(3):
        counts = pixels[:, channel].flatten().bincount(minlength=256).double()
        values = torch.arange(256).double() / 255
        mean = (counts * values).sum() / counts.sum()
        std = ((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt()
        assert abs(mean - data.MEAN[channel]) < 1e-8
        assert abs(std - data.STD[channel]) < 1e-8


# Splits and readers, on a tiny set


def test_split_is_fixed_stratified_and_complete():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
    train, validation = slices.split_indices(labels)
    assert np.bincount(labels[validation]).tolist() == [500] * 10
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(50_000))
    # Fixed for ever: accuracies of different sessions are compared on these images.
    digest = hashlib.sha256(validation.astype("<i8").tobytes()).hexdigest()
    assert digest == "92799b6129a2da6e19a2b2bf7581dca2691c112082427d27c9e3ae10426d6d17"


@pytest.mark.parametrize("form", ["bin", "py"])
def test_full_set_in_either_layout(tiny, form, monkeypatch):
    monkeypatch.setattr(slices, "VALIDATION_PER_CLASS", 2)
    folder = "cifar-10-batches-bin" if form == "bin" else "cifar-10-batches-py"
    cifar_stub.write(tiny / "data" / folder, cifar_stub.files(form))
    sizes = {split: len(load(split, "full")) for split in data.SPLITS}
    assert sizes == {"train": 180, "train_all": 200, "validation": 20, "calibration": 180, "test": 40}
    train = {image.numpy().tobytes() for image in load("train", "full").pixels}
    assert not train & {image.numpy().tobytes() for image in load("validation", "full").pixels}
    test = cifar_stub.records()["test_batch"]
    assert np.array_equal(load("test", "full").pixels.flatten(1).numpy(), test[:, 1:])
    assert load("test", "full").labels.tolist() == test[:, 0].tolist()


def test_reader_agrees_with_torchvision(tiny, monkeypatch):
    cifar_stub.write(tiny / "data" / "cifar-10-batches-py", cifar_stub.files("py"))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
    theirs = torchvision.datasets.CIFAR10(str(tiny / "data"), train=True)
    ours = load("train_all", "full")
    assert np.array_equal(ours.pixels.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert ours.labels.tolist() == theirs.targets


def test_md5s_are_those_torchvision_publishes():
    theirs = dict(torchvision.datasets.CIFAR10.train_list + torchvision.datasets.CIFAR10.test_list)
    assert theirs == layout.PICKLE.md5


@pytest.mark.parametrize("where", ["QUANTLIB_DATA", "itself", "data", "cache", "root"])
def test_places_searched(tiny, monkeypatch, where):
    base = {"QUANTLIB_DATA": tiny / "a", "itself": tiny / "a", "data": tiny / "data", "root": tiny / "b"}.get(
        where, tiny / "cache" / "quantlib"
    )
    inner = base if where == "itself" else base / "cifar-10-batches-bin"
    folder = cifar_stub.write(inner, cifar_stub.files("bin"))
    if where in ("QUANTLIB_DATA", "itself"):
        monkeypatch.setenv("QUANTLIB_DATA", str(tiny / "a"))
    assert layout.locate(tiny / "b" if where == "root" else None) == folder


def test_named_folder_comes_first(tiny, monkeypatch):
    cifar_stub.write(tiny / "data" / "cifar-10-batches-bin", cifar_stub.files("bin"))
    mine = cifar_stub.write(tiny / "mine" / "cifar-10-batches-py", cifar_stub.files("py"))
    monkeypatch.setenv("QUANTLIB_DATA", str(tiny / "mine"))
    assert layout.locate() == mine


def test_damaged_copy_is_named_and_passed_over(tiny, monkeypatch):
    bad = cifar_stub.write(tiny / "bad" / "cifar-10-batches-bin", cifar_stub.files("bin"))
    (bad / "data_batch_3.bin").write_bytes(b"x" + (bad / "data_batch_3.bin").read_bytes()[1:])
    monkeypatch.setenv("QUANTLIB_DATA", str(tiny / "bad"))
    with pytest.raises(DataError, match=r"data_batch_3\.bin is damaged .*quantlib\.subject\.fetch"):
        load("test", "full")
    good = cifar_stub.write(tiny / "data" / "cifar-10-batches-bin", cifar_stub.files("bin"))
    assert layout.locate() == good


def test_copy_that_loses_a_file_is_noticed(tiny):
    folder = cifar_stub.write(tiny / "data" / "cifar-10-batches-bin", cifar_stub.files("bin"))
    assert len(load("test", "full")) == cifar_stub.N
    (folder / "data_batch_5.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_5\.bin cannot be read"):
        load("test", "full")


@pytest.mark.parametrize(
    ("split", "source", "error", "words"),
    [
        ("validate", "slice", ConfigError, "choose one of train, train_all, validation"),
        ("test", "all", ConfigError, "choose slice"),
        ("train", "slice", DataError, "quantlib.subject.fetch"),
        ("test", "full", DataError, "QUANTLIB_DATA"),
    ],
)
def test_wrong_requests_say_what_to_do(tiny, split, source, error, words):
    with pytest.raises(error, match=words):
        load(split, source)


# Images, normalize, batches


def test_take_and_subset():
    images = load("validation")
    assert torch.equal(images.take(7).pixels, images.pixels[:7])
    drawn = images.take(100, seed=3)
    expected = np.random.default_rng(3).choice(500, 100, replace=False)
    assert torch.equal(drawn.labels, images.labels[expected])
    assert torch.equal(drawn.pixels, images.pixels[torch.from_numpy(expected)])
    assert images.take(100, seed=3).md5 == drawn.md5 != images.take(100, seed=4).md5
    assert images.take(500).md5 == images.md5
    assert images.subset([4, 2]).labels.tolist() == [images.labels[4], images.labels[2]]
    assert len(images.take(0)) == 0
    for n in (501, -1):
        with pytest.raises(ConfigError, match="slice validation set has 500"):
            images.take(n)


def test_normalize_is_torchvisions():
    pixels = load("test").pixels[:20]
    published = [0.4914, 0.4822, 0.4465, 0.2470, 0.2435, 0.2616]
    assert [round(each, 4) for each in (*data.MEAN, *data.STD)] == published
    expected = torchvision.transforms.Normalize(data.MEAN, data.STD)(pixels.float() / 255)
    assert torch.equal(normalize(pixels), expected)
    assert normalize(pixels[0]).shape == (3, 32, 32)
    assert normalize(pixels).dtype == torch.float32


def test_normalize_by_hand():
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1)
    result = normalize(pixels, mean=(0.5, 0.5, 0.1), std=(0.5, 0.25, 0.2)).flatten()
    assert torch.allclose(result, torch.tensor([-1.0, 2.0, 0.5]))


def test_batches_cover_everything_once_in_order():
    images = load("validation").take(70)
    parts = list(batches(images, 32))
    assert [len(y) for _, y in parts] == [32, 32, 6]
    assert torch.equal(torch.cat([x for x, _ in parts]), normalize(images.pixels))
    assert torch.equal(torch.cat([y for _, y in parts]), images.labels)
    for x, _ in parts:
        assert x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ConfigError, match="at least 1"):
        next(batches(images, 0))


def test_images_are_frozen():
    images = load("test").take(1)
    assert isinstance(images, Images)
    with pytest.raises(AttributeError):
        images.split = "train"


def test_a_mask_selects_what_it_says():
    images = load("test").take(50)
    threes = images.subset(images.labels == 3)
    assert len(threes) == int((images.labels == 3).sum()) > 0 and (threes.labels == 3).all()

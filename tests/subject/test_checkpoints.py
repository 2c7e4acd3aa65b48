"""Checkpoints: reproducible bytes, and each way a file can be wrong has its sentence."""

from pathlib import Path

import pytest
import torch

from quantlib.errors import CheckpointError, NonFiniteError
from quantlib.subject.checkpoints import (
    checkpoint_index,
    checkpoint_info,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from quantlib.subject.models import build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_checkpoint(build("resnet20"), "resnet20_cifar10", {"model": "resnet20"}, tmp_path)
    return tmp_path


def test_round_trip_is_exact_in_half_precision(folder: Path) -> None:
    torch.manual_seed(0)
    original = build("resnet20").state_dict()
    loaded = load_checkpoint("resnet20", folder)
    assert not loaded.training
    assert checkpoint_info("resnet20", folder) == checkpoint_info("resnet20_cifar10", folder)
    for key, value in loaded.state_dict().items():
        expected = original[key].half().float() if original[key].is_floating_point() else original[key]
        assert torch.equal(value, expected) and value.dtype == original[key].dtype


def test_the_same_weights_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    again = save_checkpoint(build("resnet20"), "resnet20_cifar10", {"model": "resnet20"}, tmp_path / "again")
    assert again.read_bytes() == (folder / "resnet20_cifar10.safetensors").read_bytes()


def test_a_missing_checkpoint_names_the_command_that_makes_it(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="training --recipe resnet50"):
        load_checkpoint("resnet50", folder)
    with pytest.raises(CheckpointError, match="known: resnet20_cifar10.*check the name"):
        load_checkpoint("resnet1000", folder)
    with pytest.raises(CheckpointError, match=r"resnet50_pruned90\.toml say how"):
        load_checkpoint("resnet50_pruned90", folder)


def test_a_deleted_truncated_or_altered_file_is_refused(folder: Path) -> None:
    path = folder / "resnet20_cifar10.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-100], content[:5000] + b"\x01" + content[5001:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint("resnet20", folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_checkpoint("resnet20", folder)


def test_another_architecture_and_a_truncated_loose_file_are_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "resnet20_cifar10.safetensors"
    with pytest.raises(CheckpointError, match="another architecture"):
        load_weights(path, "resnet50")
    (tmp_path / "half.safetensors").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_weights(tmp_path / "half.safetensors", "resnet20")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_weights(tmp_path / "none.safetensors", "resnet20")


def test_a_damaged_index_is_refused(folder: Path) -> None:
    (folder / "index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        load_checkpoint("resnet20", folder)


def test_a_number_beyond_half_precision_is_refused(folder: Path) -> None:
    model = build("resnet20")
    model.bn1.running_var[0] = 1e5
    with pytest.raises(NonFiniteError, match="bn1.running_var"):
        save_checkpoint(model, "large", {"model": "resnet20"}, folder)
    assert not (folder / "large.safetensors").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]"])
def test_an_index_that_is_no_list_is_refused(folder: Path, content: bytes) -> None:
    (folder / "index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="index.json .*restore it with `git checkout"):
        checkpoint_index(folder)

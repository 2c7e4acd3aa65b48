"""Trained weights on disk: safetensors in half precision, an index with sha256, never a silent training."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantlib.errors import CheckpointError, NonFiniteError
from quantlib.subject.files import replace_atomically, write_atomically
from quantlib.subject.models import MODELS, build
from quantlib.subject.recipe import RECIPES

ROOT = Path(os.environ.get("QUANTLIB_CHECKPOINTS", Path(__file__).parents[2] / "checkpoints"))
"""The folder of the checkpoints: QUANTLIB_CHECKPOINTS, else checkpoints/ beside the library."""
RESULTS = Path(__file__).parents[2] / "results"
"""The folder of the results, beside the library wherever the checkpoints are."""
INDEX = "index.json"
"""The list of the trained weights in a folder of checkpoints."""
COMPRESSED = "compressed.json"
"""The list of the compressed files in it."""


def checkpoint_index(root: Path | None = None, file: str = INDEX) -> dict[str, Any]:
    """Return every entry of checkpoints/index.json by name, none where there is no index.

    file: INDEX, or COMPRESSED. Raises CheckpointError when the index is damaged. Introduced in notebook 01.
    """
    path = (root or ROOT) / file
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text at all
        raise CheckpointError(
            f"{path} is damaged ({error}); restore it with `git checkout {path}`"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no list of files; restore it with `git checkout {path}`")
    return found


def shipped_file(name: str) -> Path:
    """A file of checkpoints/ that is no trained network of the index; CheckpointError where there is none."""
    path = ROOT / name
    if not path.is_file():
        raise CheckpointError(f"checkpoints/{name} is not recorded yet.")
    return path


def sha256(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits. Introduced in notebook 00."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_info(name: str, root: Path | None = None) -> dict[str, Any]:
    """Return the index entry of a checkpoint: file, sha256, bytes, model, metrics, recipe.

    `resnet50` is short for `resnet50_cifar10`, and so for all. Raises CheckpointError that names the command
    which makes a missing one. Introduced in notebook 00.
    """
    index = checkpoint_index(root)
    entry = find_entry(index, name)
    if entry is None:
        known = ", ".join(sorted(index)) or "none yet"
        model = name.removesuffix("_cifar10")
        hint = "check the name"
        if model in MODELS:
            hint = f"`python -m quantlib.subject.training --recipe {model}` makes it"
        elif (RECIPES / f"{model}.toml").exists():
            hint = f"the first lines of quantlib/subject/recipes/{model}.toml say how it is made"
        raise CheckpointError(f"there is no checkpoint {name!r} (known: {known}); {hint}")
    return entry


def find_entry(index: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return the entry of a checkpoint by its full or its short name, or None."""
    return index.get(name) or index.get(f"{name}_cifar10")


def load_checkpoint(name: str, root: Path | None = None, network: nn.Module | None = None) -> nn.Module:
    """Load a trained network by its name in checkpoints/index.json, in eval mode, float32, channels-last.

    The name may be short, see `checkpoint_info`. The file is checked against its sha256 first. `network`
    takes up the weights where the model that the index names was changed before it was trained on.
    Raises CheckpointError when it is missing, truncated, altered or of another architecture.
    Introduced in notebook 01.
    """
    folder = root or ROOT
    info = checkpoint_info(name, folder)
    path = folder / info["file"]
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing; restore it with `git checkout {path}` or train it again"
        )
    if sha256(path) != info["sha256"]:
        raise CheckpointError(f"{path} is damaged: its sha256 differs from index.json; restore it from git")
    return load_weights(path, info["model"], network)


def load_weights(path: Path, model_name: str, network: nn.Module | None = None) -> nn.Module:
    """Load a safetensors file, which may be in half precision, into `network` or a fresh `model_name`."""
    model = network or build(model_name)
    try:
        state = load_file(path)
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; check the path") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file; restore it from git"
        ) from error
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit {model_name}: it was trained for another architecture, whose name it wants"
        ) from error
    return model.eval().to(memory_format=torch.channels_last)


def in_half(name: str, value: Tensor) -> Tensor:
    """A tensor in half precision; NonFiniteError where a finite number of it is too large for that."""
    half = value.half()
    if not torch.equal(half.isfinite(), value.isfinite()):
        raise NonFiniteError(f"{name} has numbers beyond half precision's 65,504; scale them down first.")
    return half


def save_checkpoint(model: nn.Module, name: str, info: dict[str, Any], root: Path | None = None) -> Path:
    """Write a model in half precision and enter it in the index; the same weights give the same bytes.

    `info` needs `model`, the name in quantlib.subject.models; metrics and recipe are kept as given.
    """
    folder = root or ROOT
    path = folder / f"{name}.safetensors"
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    state = {k: in_half(k, v) if v.is_floating_point() else v for k, v in state.items()}
    about = json.dumps({"model": info["model"], "name": name}, sort_keys=True)
    with replace_atomically(path) as aside:
        save_file(state, aside, metadata={"quantlib": about})
    index = checkpoint_index(folder)
    index[name] = {"file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size} | info
    write_atomically(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    return path

"""One file format for quantized networks: safetensors, with a JSON description and a checksum inside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quantlib.errors import CheckpointError
from quantlib.subject.files import replace_atomically


@contextmanager
def sense_of(path: str | Path, problem: str = "describes a network that cannot be built") -> Iterator[None]:
    """Read a description in this block: what does not fit raises CheckpointError with the `problem`.

    The checksum has been found right by then, so the file was written by another version or by hand.
    """
    try:
        yield
    except Exception as error:  # a description can be wrong in any way
        raise CheckpointError(f"{path} {problem} ({error!r}); save it again.") from error


def write(
    path: str | Path, kind: str, version: int, tensors: dict[str, Tensor], description: dict[str, Any]
) -> None:
    """Write `tensors` and `description` (what JSON can hold) as a file of this kind and version.

    The metadata key "quantlib" holds the description and the sha256 over it and all tensors. Written aside,
    then renamed: never half a file.
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # Through JSON and back first: tuples become lists, and the checksum sees what a reader will see.
    whole = json.loads(json.dumps({"format": f"quantlib-{kind}", "version": version, **description}))
    whole["sha256"] = digest(tensors, whole)
    with replace_atomically(Path(path)) as aside:
        save_file(tensors, aside, metadata={"quantlib": json.dumps(whole)})


def read(path: str | Path, kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file that `write` made.

    Raises CheckpointError when it is missing, damaged, of another kind or of another version.
    """
    path, save = Path(path), f"save_{kind}(model, path)"
    if not path.exists():
        raise CheckpointError(f"There is no file {path}; write it with {save}.")
    try:
        with safe_open(path, "pt") as file:
            description = json.loads((file.metadata() or {}).get("quantlib", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RecursionError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}); save it again."
        ) from error
    if not isinstance(description, dict) or description.get("format") != f"quantlib-{kind}":
        raise CheckpointError(f"{path} is no {kind} network of quantlib's; write one with {save}.")
    if description.get("version") != version:
        raise CheckpointError(
            f"{path} is of version {description.get('version')} and this quantlib reads version {version}; "
            "save it again."
        )
    if description.pop("sha256", None) != digest(tensors, description):
        raise CheckpointError(f"{path} is damaged: its checksum does not fit; save or copy it again.")
    return tensors, description


def digest(tensors: dict[str, Tensor], description: dict[str, Any]) -> str:
    """sha256 over the description and every tensor's name and bytes."""
    found = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()

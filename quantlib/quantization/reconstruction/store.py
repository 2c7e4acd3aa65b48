"""Finished units on the disk, so that a reconstruction that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quantlib.subject.files import replace_atomically


class Store:
    """A folder with a file for each finished unit: its tensors, and a report of plain data.

    The folder must belong to one network, one recipe and one set of images: whoever makes the store names
    it by a digest of these. A file that cannot be read counts as missing. Introduced in notebook 10.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def get(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and report of a unit, or None."""
        try:
            with safe_open(self._path(name), framework="pt") as file:
                report = json.loads(file.metadata()["report"])
                return {key: file.get_tensor(key) for key in file.keys()}, report  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def put(self, name: str, tensors: Mapping[str, Tensor], report: Mapping[str, Any]) -> None:
        """Keep a unit, whole or not at all."""
        dense = {key: tensor.contiguous() for key, tensor in tensors.items()}
        with replace_atomically(self._path(name)) as aside:
            save_file(dense, aside, {"report": json.dumps(dict(report))})

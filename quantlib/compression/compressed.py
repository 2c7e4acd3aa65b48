"""The list of compressed files that were tuned: compressed.json, beside the checkpoints."""

import json
from pathlib import Path
from typing import Any

from quantlib.subject import checkpoints
from quantlib.subject.files import write_atomically


def compressed_files(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """The tuned compressed files by name, each with file, bytes and where it comes from; empty without any.

    folder: that of the checkpoints. Raises CheckpointError when the list is damaged.
    Introduced in notebook 14.
    """
    return checkpoints.checkpoint_index(folder, checkpoints.COMPRESSED)


def enter_compressed(name: str, entry: dict[str, Any], folder: Path | None = None) -> None:
    """Add an entry to the list, or replace it; CheckpointError when the list is damaged."""
    path = (folder or checkpoints.ROOT) / checkpoints.COMPRESSED
    every = {**compressed_files(folder), name: entry}
    write_atomically(path, json.dumps(every, indent=2, sort_keys=True) + "\n")

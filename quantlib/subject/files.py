"""Files that a reader sees whole or not at all: written aside, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Give a path to write to, on the same disk, whose file replaces `path` when the block has ended well.

    An error in the block leaves the old file as it was, and nothing beside it. Several processes may write
    the same file: the last one wins. A missing folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own, not another name: torch.save writes the file's name into the file.
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        aside = Path(folder) / path.name
        yield aside
        aside.chmod(0o644)  # safetensors and mkstemp leave files that only their owner can read
        os.replace(aside, path)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file by `replace_atomically`; text as UTF-8."""
    with replace_atomically(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)

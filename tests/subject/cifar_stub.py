"""A tiny CIFAR-10 in every published form, for tests that must not need the real one."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from quantlib.subject import layout
from quantlib.subject.layout import BATCHES, BINARY, PICKLE, TRAIN_BATCHES

N = 40  # images a batch


def records() -> dict[str, np.ndarray]:
    """Six batches of N random images, every class four times in each."""
    rng = np.random.default_rng(5)
    made = {}
    for batch in BATCHES:
        pixels = rng.integers(0, 256, (N, 3072), dtype=np.uint8)
        made[batch] = np.concatenate([rng.permutation(N)[:, None].astype(np.uint8) % 10, pixels], axis=1)
    return made


def as_pickle(batch: np.ndarray) -> bytes:
    """torchvision's form, {"data": (n, 3072), "labels": list}, its keys being Python 2's byte strings."""
    content = {"labels": batch[:, 0].tolist(), "data": np.ascontiguousarray(batch[:, 1:])}
    data = pickle.dumps(content, protocol=2)
    for key in (b"labels", b"data"):  # opcode X (unicode) becomes T (a Python 2 string)
        size = len(key).to_bytes(4, "little")
        data = data.replace(b"X" + size + key, b"T" + size + key)
    return data


def files(form: str) -> dict[str, bytes]:
    """File name -> content in the form `bin`, `py` or `npm`."""
    data = records()
    if form == "bin":
        return {f"{name}.bin": batch.tobytes() for name, batch in data.items()}
    if form == "py":
        return {name: as_pickle(batch) for name, batch in data.items()}
    made = {}
    for name, batch in data.items():
        picture = np.stack([batch[:, 1 + 1024 * c : 1 + 1024 * (c + 1)] for c in range(3)], axis=-1)
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        made[f"{name}.png"] = file.getvalue()
    train = np.concatenate([data[name][:, 0] for name in TRAIN_BATCHES])
    made["train_lables.json"] = json.dumps(train.tolist()).encode()
    made["test_lables.json"] = json.dumps(data["test_batch"][:, 0].tolist()).encode()
    return made


def tar(content: dict[str, bytes], folder: str = "somewhere") -> bytes:
    """A .tar.gz of `content`, each file under `folder`."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def write(folder: Path, content: dict[str, bytes]) -> Path:
    """Write `content` into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def use_tiny_md5s(monkeypatch) -> None:
    """Make the tiny set the one whose md5s are published."""
    for name, batch in records().items():
        monkeypatch.setitem(BINARY.md5, name, layout.md5_of(batch.tobytes()))
        monkeypatch.setitem(PICKLE.md5, name, layout.md5_of(as_pickle(batch)))

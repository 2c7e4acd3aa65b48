"""The compressed file: a network's every weight, bias and batch norm, in as few bytes as their values allow.

The file is lossless. What is lost was lost before: `share` makes values few, pruning makes them zero,
`simplify_norms` makes norms short. Whatever the network is, it comes back with the same bits, but for
the sign of zeros.

    "QLDC", version, checksum (8 bytes) | name of the architecture | fingerprint | records

The file does not say how large a layer is: the architecture does, and the fingerprint says that it is the
right one. So no file can ask for more memory than the network takes anyway.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantlib.compression import lanes
from quantlib.compression.records import Pending, Reader, Sizes, decode, encode, varint
from quantlib.errors import CheckpointError, ConfigError
from quantlib.subject.files import write_atomically
from quantlib.subject.models import MODELS, build

MAGIC, VERSION, CHECKSUM = b"QLDC", 1, 8
"""The first bytes of a file, the version that is written, and the bytes of checksum and fingerprint."""
SLACK = 1 << 16
"""Bytes that a file may have beyond eight for each number of its network; more are not read."""
LONGEST_NAME = 64
"""Bytes that the name of an architecture may have."""


class Report(NamedTuple):
    """What became of a network: bytes on disk, and of each array; pools hold what belongs to no layer."""

    bytes: int
    arrays: list[Sizes]


def compress(model: nn.Module, path: str | Path, architecture: str = "") -> Report:
    """Write a network to a file that `decompress` turns back into one with the same predictions, bit by bit.

    architecture: a name of `quantlib.subject.models`, so that the file can be opened without a model; may be
    left out. Weights (two dimensions or more) get a record each; small float tensors are pooled by the last
    part of their names. Raises ConfigError for an unknown architecture or another than the model's, and for
    tensors that are neither float32 nor integers. Introduced in notebook 14.
    """
    if architecture and architecture not in MODELS:
        raise ConfigError(f"there is no architecture {architecture!r}; leave it out, and keep the model.")
    state = _state(model)
    if architecture and _fingerprint(state) != _fingerprint(_state(_built(architecture))):
        raise ConfigError(f"the model is no {architecture!r} as `build` makes it; leave the name out.")
    records, sizes = [], []
    for name, values in _arrays(state):
        flags, flat = _without_repeats(values)
        record, size = encode(name, flat)
        records.append(flags + record)
        sizes.append(size)
    title = architecture.encode()
    body = varint(len(title)) + title + _fingerprint(state) + b"".join(records) + _integers(state)
    content = MAGIC + bytes([VERSION]) + hashlib.sha256(body).digest()[:CHECKSUM] + body
    write_atomically(Path(path), content)
    return Report(len(content), sizes)


def decompress(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The network that `compress` wrote, in eval mode: every weight the same bits, but for the
    sign of zeros.

    model: a network of the same architecture, which is filled and returned; needed where the file names no
    architecture. Without it the network is channels-last, as checkpoints are: another memory format may mean
    another kernel and so another last bit of the logits.
    Raises CheckpointError, in one sentence, when the file is missing, truncated, altered, of another version
    or of another architecture. Introduced in notebook 14.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if model is None:
                model = _model(file.read(LONGEST_NAME + 16)).to(memory_format=torch.channels_last)
            # Never more than this network can need, however long the file is.
            file.seek(0)
            content = file.read(8 * sum(t.numel() for t in model.state_dict().values()) + SLACK)
        _fill(model, _checked(content))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}; write it with compress(model, path)."
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be read: {str(error).rstrip('.')}.") from error
    return model.eval()


def _model(head: bytes) -> nn.Module:
    """The untrained network that the head of a file names."""
    reader = _headed(head)
    reader.take(CHECKSUM)
    name = reader.take(min(reader.varint(), LONGEST_NAME)).decode(errors="replace")
    if name not in MODELS:
        raise CheckpointError("it names no architecture that quantlib knows; pass the model to be filled")
    return _built(name)


def _built(name: str) -> nn.Module:
    """An untrained network; whoever draws random numbers around it draws what he would have drawn anyway."""
    with torch.random.fork_rng(devices=[]):
        return build(name)


def _headed(content: bytes) -> Reader:
    """A reader behind magic and version, once they are right."""
    if content[:4] != MAGIC:
        raise CheckpointError(
            "it is no compressed network of quantlib's; write one with compress(model, path)"
        )
    reader = Reader(content)
    version = reader.take(5)[4]
    if version != VERSION:
        raise CheckpointError(f"it is of version {version}, and this quantlib reads version {VERSION}")
    return reader


def _checked(content: bytes) -> Reader:
    """A reader behind the name of the architecture, once the checksum is right."""
    reader = _headed(content)
    if reader.take(CHECKSUM) != hashlib.sha256(content[5 + CHECKSUM :]).digest()[:CHECKSUM]:
        raise CheckpointError("its checksum does not fit; it is cut off or damaged, copy it again")
    reader.take(min(reader.varint(), LONGEST_NAME))
    return reader


@torch.no_grad()
def _fill(model: nn.Module, reader: Reader) -> None:
    """Read every record, then all streams at once, then copy the values into the model."""
    state = dict(sorted(model.state_dict().items()))
    if reader.take(CHECKSUM) != _fingerprint(_state(model)):
        raise CheckpointError("it belongs to another architecture; pass the model that was compressed")
    waiting: list[tuple[list[str], NDArray[np.bool_], Pending]] = []
    for names in _groups(state):
        repeated, size = _read_repeats(reader, [state[name].numel() for name in names])
        waiting.append((names, repeated, decode(reader, size)))
    integers = _read_integers(reader, state)
    if reader.place != len(reader.data):
        raise CheckpointError("it is longer than its content; it is damaged")
    symbols = iter(lanes.read([stream for _, _, pending in waiting for stream in pending.streams]))
    arrays = [pending.finish([next(symbols) for _ in pending.streams]) for *_, pending in waiting]
    # Nothing is copied before everything is read: a file that is refused leaves the model as it was.
    for (names, repeated, _), flat in zip(waiting, arrays, strict=True):
        for name, same in zip(names, repeated, strict=True):
            taken, flat = np.split(flat, [1 if same else state[name].numel()])
            state[name].copy_(
                torch.from_numpy(taken.copy()).expand(state[name].numel()).view(state[name].shape)
            )
    for name, values in integers.items():
        state[name].copy_(values)


# What is in a network ------------------------------------------------------------------------------------


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor by name, in the order of the names: a module may have changed the order of its own."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(model.state_dict().items())}
    for name, tensor in state.items():
        if tensor.dtype != torch.float32 and (tensor.is_floating_point() or tensor.is_complex()):
            raise ConfigError(f"{name} is {tensor.dtype}; only float32 and integers are compressed.")
    return state


def _fingerprint(state: dict[str, Tensor]) -> bytes:
    """Eight bytes that tell architectures apart: names, shapes and types of all tensors."""
    text = "\n".join(f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in state.items())
    return hashlib.sha256(text.encode()).digest()[:CHECKSUM]


def _groups(state: dict[str, Tensor]) -> list[list[str]]:
    """Names of the float tensors that share a record: each weight alone, small ones by their last name."""
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    alone = [[name] for name, tensor in floats.items() if tensor.dim() > 1]
    pools: dict[str, list[str]] = {}
    for name, tensor in floats.items():
        if tensor.dim() <= 1:
            pools.setdefault(name.rpartition(".")[2], []).append(name)
    return alone + list(pools.values())


def _arrays(state: dict[str, Tensor]) -> list[tuple[str, list[NDArray[np.float32]]]]:
    """Each group's name and its tensors, flat."""
    return [
        (
            names[0] if len(names) == 1 else f"all {names[0].rpartition('.')[2]}",
            [_flat(state[n]) for n in names],
        )
        for names in _groups(state)
    ]


def _flat(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.flatten().numpy()


def _without_repeats(tensors: list[NDArray[np.float32]]) -> tuple[bytes, NDArray[np.float32]]:
    """A bit for each tensor, 1 where it holds one value all over and is stored as that, and all values."""
    repeated = [len(values) > 0 and bool((values == values[0]).all()) for values in tensors]
    kept = [values[:1] if same else values for values, same in zip(tensors, repeated, strict=True)]
    return np.packbits(repeated).tobytes(), np.concatenate(kept)


def _read_repeats(reader: Reader, sizes: list[int]) -> tuple[NDArray[np.bool_], int]:
    flags = np.frombuffer(reader.take(-(-len(sizes) // 8)), np.uint8)
    repeated = np.unpackbits(flags)[: len(sizes)].astype(bool)
    return repeated, int(np.where(repeated, np.minimum(sizes, 1), sizes).sum())


def _integers(state: dict[str, Tensor]) -> bytes:
    """Counters of batch norms and the like: 8 bytes each, deflated."""
    whole = [tensor.flatten().long().numpy() for tensor in state.values() if not tensor.is_floating_point()]
    packed = zlib.compress(b"".join(values.tobytes() for values in whole), 9)
    return varint(len(packed)) + packed


def _read_integers(reader: Reader, state: dict[str, Tensor]) -> dict[str, Tensor]:
    wanted = {name: tensor for name, tensor in state.items() if not tensor.is_floating_point()}
    size = 8 * sum(tensor.numel() for tensor in wanted.values())
    try:
        content = zlib.decompressobj().decompress(reader.take(reader.varint()), size + 1)
    except zlib.error as error:
        raise CheckpointError("its counters are damaged") from error
    if len(content) != size:
        raise CheckpointError("it has another number of counters; it is damaged")
    parts = torch.from_numpy(np.frombuffer(content, np.int64).copy()).split(
        [t.numel() for t in wanted.values()]
    )
    return {name: part.view(t.shape) for (name, t), part in zip(wanted.items(), parts, strict=True)}

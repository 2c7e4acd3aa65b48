"""Weights of few bits, packed without gaps: eight values of b bits are b bytes, in memory and in a file.

The values follow each other as in one long binary number that is read from its low end: value i occupies
the bits i*b up to (i+1)*b of the stream, and bit k of the stream is bit k % 8 of byte k // 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlib.errors import ConfigError
from quantlib.quantization import quantized_file
from quantlib.quantization.integer_file import describe, rebuild, reference_of
from quantlib.quantization.integer_graph import Integer
from quantlib.quantization.integer_layers import IntegerLayer

KIND, VERSION = "packed", 1
"""What the file says of itself."""


def pack(q: Tensor, bits: int) -> Tensor:
    """Integers of any shape as ceil(n * bits / 8) bytes, uint8: the low `bits` of each, two's complement.

        word = sum over k < 8 of (q[8 i + k] mod 2**bits) << (bits * k);  byte j of it = word >> 8 j & 255

    Raises ConfigError unless 1 <= bits <= 8, or for values outside -2**(bits-1) .. 2**(bits-1) - 1, or
    0 .. 2**bits - 1 where none is negative.
    Introduced in notebook 09.

    >>> pack(torch.tensor([1, -2, 7, -8]), bits=4).tolist()  # 0x1, 0xE, 0x7, 0x8: low nibble first
    [225, 135]
    """
    _check_bits(bits)
    values = q.flatten().long()
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    if not (-(2 ** (bits - 1)) <= low and high < 2 ** (bits - (low < 0))):
        raise ConfigError(f"{bits} bits do not hold the values {low} to {high}; pass more bits.")
    words = torch.zeros(-(-len(values) // 8) * 8, dtype=torch.int64)
    words[: len(values)] = values & (2**bits - 1)
    shifts = torch.arange(8) * bits
    # Eight values of eight bits would reach the sign of an int64; the shift back masks what it drags along.
    whole = (words.view(-1, 8) << shifts).sum(1, keepdim=True)
    stream = (whole >> torch.arange(bits) * 8) & 255
    return stream.flatten()[: packed_bytes(len(values), bits)].to(torch.uint8)


def unpack(packed: Tensor, bits: int, shape: Sequence[int], signed: bool = True) -> Tensor:
    """The integers that `pack` packed: int8, or uint8 when not `signed`, of `shape`.

    Raises ConfigError when the number of bytes does not fit the shape. Introduced in notebook 09.

    >>> unpack(torch.tensor([225, 135], dtype=torch.uint8), bits=4, shape=(2, 2)).tolist()
    [[1, -2], [7, -8]]
    """
    _check_bits(bits)
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != packed_bytes(count, bits):
        raise ConfigError(
            f"{count} values of {bits} bits are {packed_bytes(count, bits)} bytes, "
            f"not {packed.numel()} values of {packed.dtype}; pass the bits and the shape that were packed."
        )
    stream = torch.zeros(-(-count // 8) * bits, dtype=torch.int64)
    stream[: packed.numel()] = packed.flatten()
    whole = (stream.view(-1, bits) << torch.arange(bits) * 8).sum(1, keepdim=True)
    values = ((whole >> torch.arange(8) * bits) & (2**bits - 1)).flatten()[:count]
    if signed:  # the top bit counts negative
        values = values - ((values >> (bits - 1)) << bits)
    return values.view(*shape).to(torch.int8 if signed else torch.uint8)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` packed values: ceil(count * bits / 8). Introduced in notebook 09."""
    return -(-count * bits // 8)


def bits_needed(q: Tensor) -> int:
    """The fewest bits, 2 to 8, whose two's complement holds every value of an int8 tensor. Notebook 09."""
    low, high = int(q.min()), int(q.max())
    return next(bits for bits in range(2, 9) if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1))


def save_packed(model: nn.Module, path: str | Path) -> None:
    """Write an integer network with each layer's weight packed to the fewest bits that hold it.

    Biases stay int32 and scales float32, one of each per output channel. Of an engine, its reference is
    written; ConfigError for any other network. Written aside, then renamed. Introduced in notebook 09.
    """
    model = reference_of(model)
    tensors = dict(model.graph_module.state_dict())
    layers = {name: module for name, module, _ in model.steps if isinstance(module, IntegerLayer)}
    packed = {}
    for name, layer in layers.items():
        bits = bits_needed(layer.weight)
        packed[name] = [bits, list(layer.weight.shape)]
        tensors[f"{name}.weight"] = pack(layer.weight, bits)
    quantized_file.write(path, KIND, VERSION, tensors, {**describe(model), "packed": packed})


def load_packed(path: str | Path) -> Integer:
    """The network that `save_packed` wrote: the same integers, hence the same predictions.

    Raises CheckpointError when the file is missing, damaged, cut off, of another kind or version, or when
    its description does not fit its bytes. Introduced in notebook 09.
    """
    tensors, description = quantized_file.read(path, KIND, VERSION)
    with quantized_file.sense_of(path, "cannot be unpacked"):
        for name, (bits, shape) in description["packed"].items():
            tensors[f"{name}.weight"] = unpack(tensors[f"{name}.weight"], bits, shape)
    return rebuild(path, tensors, description)


def packed_layers(path: str | Path) -> dict[str, tuple[int, int]]:
    """Bits a weight and bytes on disk of each layer in a file of `save_packed`.

    Raises CheckpointError as `load_packed` does. Introduced in notebook 09.
    """
    _, description = quantized_file.read(path, KIND, VERSION)
    with quantized_file.sense_of(path, "does not say how it is packed"):
        found: dict[str, Any] = description["packed"]
        return {name: (bits, packed_bytes(math.prod(shape), bits)) for name, (bits, shape) in found.items()}


def _check_bits(bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ConfigError(f"bits must be a whole number from 1 to 8, not {bits!r}.")

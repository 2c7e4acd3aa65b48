"""Who stands on the scoreboard: how each network is made from what is shipped, and what it takes on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quantlib.compression.archive import decompress
from quantlib.compression.lowrank_file import load_factorized
from quantlib.quantization.graph import fuse
from quantlib.quantization.integer_engine import Engine
from quantlib.quantization.integer_graph import Integer
from quantlib.quantization.packed import load_packed, save_packed
from quantlib.quantization.qconfig import WEIGHT, QConfig, check_name
from quantlib.quantization.reconstruction import round_weights
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.study.rivals import MISSING, RIVALS, Contest, first_line
from quantlib.subject import checkpoints
from quantlib.subject.data import Images, batches


class Entry(NamedTuple):
    """A network, images in and logits out, and the bytes of the file that it comes from."""

    network: nn.Module
    bytes: int


class Answering(nn.Module):
    """A runtime's network as a module: its logits become a float32 tensor. Introduced in notebook 19."""

    def __init__(self, network: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.call = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        return torch.as_tensor(self.call(x)).float()


@dataclass
class Shelf:
    """What the entrants are made of: trained networks by name, calibration images, a folder for files.

    `load` gets a checkpoint's name and how to load it, as `Session.model`; `file` the name of another file of
    checkpoints/, as `Session.file`. Introduced in notebook 19.
    """

    load: Callable[[str, Callable[[str], nn.Module]], nn.Module]
    file: Callable[[str], Path]
    images: Images
    folder: Path
    _contests: dict[str, Contest] = field(default_factory=dict)

    def contest(self, name: str) -> Contest:
        """A checkpoint, factorized or not, as rivals get it; CheckpointError when it is not made yet."""
        if name not in self._contests:
            factorized = "plans" in checkpoints.checkpoint_info(name)
            way = load_factorized if factorized else checkpoints.load_checkpoint
            self._contests[name] = Contest(self.load(name, way), self.images)
        return self._contests[name]

    def float32(self, name: str) -> Entry:
        """A trained network with batch norm folded; 4 bytes a parameter of the network as trained."""
        contest = self.contest(name)
        return Entry(contest.folded, 4 * _parameters(contest.model))

    def integer(self, name: str, bits: int = 8) -> Entry:
        """Integers throughout, activations of 8 bits, weights of `bits`, packed in the file.

        Fewer than 8 bits get ranges of least error and balanced rounding: without it such ranges lose more
        than min-max (notebooks 02 and 10).
        """
        weight = WEIGHT if bits == 8 else replace(WEIGHT, bits=bits, observer="mse")
        prepared = calibrate(prepare(self.contest(name).model, QConfig(weight=weight)), batches(self.images))
        if bits < 8:
            prepared = round_weights(prepared, "balanced", "integer")
        path = self.folder / f"{name}_w{bits}.safetensors"
        reference = convert(prepared, "integer", engine="reference")
        assert isinstance(reference, Integer)
        save_packed(reference, path)
        return self.packed(path)

    def packed(self, path: Path) -> Entry:
        """A file of `save_packed`, on the fast engine."""
        return Entry(Engine(load_packed(path)), path.stat().st_size)

    def shipped(self, name: str) -> Entry:
        """A low-bit file that a full run of notebook 10 has put into checkpoints/."""
        return self.packed(self.file(f"{name}.safetensors"))

    def archive(self, name: str) -> Entry:
        """A compressed file of notebook 14 or 16; it decodes to float32, batch norm folded."""
        path = self.file(f"{name}.qldc")
        network = fuse(decompress(path))
        return Entry(network.to(memory_format=torch.channels_last), path.stat().st_size)  # type: ignore[call-overload]

    def rival(self, name: str, width: int = 1) -> Entry:
        """One of RIVALS, made of the ResNet-50; `width`: bytes that it stores a weight in, 1 for int8.

        Batch norm is folded; a channel has a bias, and in int8 a scale, of four bytes each.
        """
        contest = self.contest("resnet50")
        layers = [part for part in contest.model.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
        weights = sum(part.weight.numel() for part in layers)
        channels = sum(len(part.weight) for part in layers)
        return Entry(Answering(RIVALS[name](contest)), width * weights + (8 if width == 1 else 4) * channels)


Make = Callable[[Shelf], Entry]
"""How an entrant is made from the shelf."""

ENTRANTS: dict[str, tuple[str, Make]] = {
    "fp32": ("float32", lambda shelf: shelf.float32("resnet50")),
    "bf16": ("bits", lambda shelf: shelf.rival("bf16", width=2)),
    "w8a8": ("bits", lambda shelf: shelf.integer("resnet50")),
    "w4a8": ("bits", lambda shelf: shelf.integer("resnet50", 4)),
    "w4a4_rescued": ("bits", lambda shelf: shelf.shipped("resnet50_w4a4")),
    "lowrank": ("architecture", lambda shelf: shelf.float32("resnet50_lowrank")),
    "lowrank_w8a8": ("both", lambda shelf: shelf.integer("resnet50_lowrank")),
    "resnet20": ("architecture", lambda shelf: shelf.float32("resnet20")),
    "resnet20_w8a8": ("both", lambda shelf: shelf.integer("resnet20")),
    "resnet20_w4a8": ("both", lambda shelf: shelf.integer("resnet20", 4)),
    "squeezenet": ("architecture", lambda shelf: shelf.float32("squeezenet")),
    "squeezenet_w8a8": ("both", lambda shelf: shelf.integer("squeezenet")),
    "squeezenet_deep": ("coded", lambda shelf: shelf.archive("squeezenet_deep")),
    "deep50": ("coded", lambda shelf: shelf.archive("resnet50_deep50")),
    "deep80": ("coded", lambda shelf: shelf.archive("resnet50_deep80")),
    "torch_ao": ("rival", lambda shelf: shelf.rival("torch_ao")),
    "onnxruntime": ("rival", lambda shelf: shelf.rival("onnxruntime")),
    "openvino": ("rival", lambda shelf: shelf.rival("openvino")),
}
"""Name, family, and how it is made. Introduced in notebook 19."""


def line_up(shelf: Shelf, names: Iterable[str] = ()) -> tuple[dict[str, Entry], dict[str, str]]:
    """The entrants named (all when none is), and for those that cannot be made here the reason.

    ConfigError for an unknown name. Introduced in notebook 19.
    """
    found: dict[str, Entry] = {}
    missing: dict[str, str] = {}
    for name in list(names) or ENTRANTS:
        check_name(name, ENTRANTS, "entrant")
        try:
            found[name] = ENTRANTS[name][1](shelf)
        except MISSING as error:
            missing[name] = first_line(error)
    return found, missing


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())

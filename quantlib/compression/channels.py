"""Which channels of a network stand and fall together.

A filter makes one channel. Whatever reads the channel loses its share of weights with it, and channels that
an addition joins go together or not at all.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx, nn

from quantlib.errors import UnsupportedOperatorError
from quantlib.quantization.canonical import ADDS, CATS, is_batch_size, modules_for, scope, tensor_inputs
from quantlib.quantization.fused import Concat, FusedAdd
from quantlib.quantization.graph import BATCH_NORMS, trace

FIXED = 0
"""The channel that stands for the images' and the logits': it never goes."""


@dataclass(frozen=True)
class Channels:
    """Which channel each layer reads and makes: int arrays of channel numbers, one entry a channel.

    Channels with one number go together. 0 is FIXED. `norms`: the batch norm right behind a layer.
    Introduced in notebook 11.
    """

    reads: dict[str, np.ndarray]
    makes: dict[str, np.ndarray]
    norms: dict[str, str]

    def bundles(self) -> dict[tuple[str, ...], np.ndarray]:
        """The channels that may go, by the layers that make them; a residual stage is one bundle."""
        makers: dict[int, list[str]] = defaultdict(list)
        for name, numbers in self.makes.items():
            for number in dict.fromkeys(numbers.tolist()):
                makers[number].append(name)
        found: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, names in makers.items():
            if number != FIXED:
                found[tuple(names)].append(number)
        return {names: np.array(numbers) for names, numbers in found.items()}


def find_channels(model: nn.Module) -> Channels:
    """Follow the channels through a traceable network of the course's operators, batch norms unfolded.

    An addition joins channels pairwise, a concatenation puts them side by side, a grouped convolution loses
    whole groups. Raises UnsupportedOperatorError that names every operator whose channels are not understood;
    ConfigError in train mode. Introduced in notebook 11.
    """
    traced = trace(model)
    walk = _Walk(dict(traced.named_modules()))
    for node in traced.graph.nodes:
        walk.visit(node)
    if walk.problems:
        raise UnsupportedOperatorError(
            f"quantlib cannot thin a network with {'; '.join(walk.problems)}: replace them, "
            "or prune single weights instead (quantlib.compression.pruning)."
        )
    return walk.channels()


class _Walk:
    """One pass over the graph: numbers the channels, and notes which ones must be equal."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules, self.problems = modules, list[str]()
        self.parent = [FIXED]
        self.values: dict[fx.Node, np.ndarray] = {}
        self.reads: dict[str, np.ndarray] = {}
        self.makes: dict[str, np.ndarray] = {}
        self.norms: dict[str, str] = {}

    def visit(self, node: fx.Node) -> None:
        """Give the node's result its channels; what is not understood is noted as a problem."""
        inputs = [self.values[source] for source in tensor_inputs(node) if source in self.values]
        if node.op == "placeholder":
            self.values[node] = np.array([FIXED])
        elif node.op == "output":
            for source in node.all_input_nodes:
                self.join(np.zeros_like(self.values[source]), self.values[source])
        elif node.op == "call_module" and isinstance(self.modules[str(node.target)], nn.Conv2d | nn.Linear):
            self.values[node] = self.layer(str(node.target), inputs[0])
        elif node.op == "call_module" and isinstance(self.modules[str(node.target)], BATCH_NORMS):
            self.values[node] = self.norm(node, inputs[0])
        elif not self.shape_only(node):
            self.values[node] = self.operator(node, inputs)

    @staticmethod
    def shape_only(node: fx.Node) -> bool:
        """Whether a node only asks for a batch's size, on the way to a view."""
        return node.target in ("size", getattr) or is_batch_size(node)

    def operator(self, node: fx.Node, inputs: list[np.ndarray]) -> np.ndarray:
        """Operators without weights."""
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        form = modules_for(node, self.modules)
        if form is None or not inputs:
            where = node.target if module is not None else scope(node) or "the top level"
            self.problems.append(f"{node.name} at {where}")
            return np.array([FIXED])
        if isinstance(module, FusedAdd) or node.target in ADDS:
            return self.join(*inputs)
        if isinstance(module, Concat) or node.target in CATS:
            if getattr(form[0], "dim", 1) not in (1, -3) or any(len(read) == 1 for read in inputs):
                self.problems.append(f"{node.name}, which joins something else than several channels,")
            return np.concatenate(inputs)
        return inputs[0]

    def layer(self, name: str, read: np.ndarray) -> np.ndarray:
        """A convolution or linear layer: joined with what it reads, it makes new channels."""
        layer: Any = self.modules[name]
        linear = isinstance(layer, nn.Linear)
        width, out = (
            (layer.in_features, layer.out_features) if linear else (layer.in_channels, layer.out_channels)
        )
        read = self.widened(read, width)
        again = name in self.makes
        made = self.makes[name] if again else self.new(out)
        if again:
            self.join(self.reads[name], read)
        elif not linear and layer.groups > 1:
            self.tie(read.reshape(layer.groups, -1), made.reshape(layer.groups, -1))
        self.reads[name], self.makes[name] = read, made
        return made

    def norm(self, node: fx.Node, read: np.ndarray) -> np.ndarray:
        """A batch norm keeps its channels apart."""
        name, source = str(node.target), node.all_input_nodes[0]
        read = self.widened(read, self.modules[name].num_features)  # type: ignore[arg-type]
        if name in self.reads:
            self.join(self.reads[name], read)
        if source.op == "call_module" and str(source.target) in self.makes:
            self.norms[str(source.target)] = name
        self.reads[name] = read
        return read

    @staticmethod
    def widened(read: np.ndarray, width: int) -> np.ndarray:
        """As many entries as the layer reads: after flattening a channel is a whole map of values."""
        return np.repeat(read, width // len(read))

    def new(self, count: int) -> np.ndarray:
        """Fresh channel numbers."""
        first = len(self.parent)
        self.parent += range(first, first + count)
        return np.arange(first, first + count)

    def root(self, number: int) -> int:
        """The number that stands for all that are joined with this one."""
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def join(self, first: np.ndarray, *others: np.ndarray) -> np.ndarray:
        """Make channels equal, pairwise; the smaller number stands for both, so that FIXED stays FIXED."""
        for other in others:
            for a, b in zip(*(side.tolist() for side in np.broadcast_arrays(first, other)), strict=True):
                low, high = sorted((self.root(a), self.root(b)))
                self.parent[high] = low
            first = first if len(first) > 1 else other
        return first

    def tie(self, *sides: np.ndarray) -> None:
        """Make all channels of a row equal; sides: (groups, any)."""
        for row in np.concatenate(sides, axis=1):
            self.join(row[:1], row[1:])

    def channels(self) -> Channels:
        """What was found, every number replaced by the one that stands for it."""
        roots = np.array([self.root(number) for number in range(len(self.parent))])
        reads, makes = ({k: roots[v] for k, v in part.items()} for part in (self.reads, self.makes))
        return Channels(reads, makes, self.norms)

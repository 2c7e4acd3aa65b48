"""What is reconstructed at a time: a layer, a block, or the whole network."""

from __future__ import annotations

import os
from dataclasses import dataclass

from torch import fx

from quantlib.errors import ConfigError
from quantlib.quantization.qconfig import check_name
from quantlib.quantization.sites import carriers, has_weight, site_name

GRANULARITIES = ("layer", "block", "network")
"""A layer at a time (AdaRound), a block at a time (BRECQ), or all at once."""


@dataclass(frozen=True)
class Unit:
    """A part of a canonical graph: one tensor in, that of `source`, and one out, that of its last node."""

    name: str
    source: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def result(self) -> fx.Node:
        """The node whose tensor comes out."""
        return self.nodes[-1]

    @property
    def layers(self) -> list[fx.Node]:
        """Its convolutions and linear layers."""
        return [node for node in self.nodes if has_weight(node)]


def blocks(graph: fx.Graph) -> list[Unit]:
    """Cut a canonical graph wherever a single tensor carries everything that is needed later.

    In a ResNet that is the stem, each residual block, and the classifier with the pooling before it; in a
    network without shortcuts each layer. Pieces without weights join the piece after them.
    Raises ConfigError for a graph without layers. Introduced in notebook 10.
    """
    nodes = [node for node in graph.nodes if node.op != "output"]
    parts, source, begin = [], nodes[0], 1
    for i in carriers(nodes)[1:]:
        if any(has_weight(node) for node in nodes[begin : i + 1]):
            parts.append((source, nodes[begin : i + 1]))
            source, begin = nodes[i], i + 1
    if not parts:
        raise ConfigError(
            "There is no convolution and no linear layer to reconstruct; pass a network with one."
        )
    parts[-1][1].extend(nodes[begin:])
    units: list[Unit] = []
    for start, part in parts:
        name = _name(part)
        if name in [unit.name for unit in units]:  # parallel layers of one module, twice
            name = f"{name}..{[site_name(node) for node in part if has_weight(node)][-1]}"
        units.append(Unit(name, start, tuple(part)))
    return units


def split(block: Unit, granularity: str) -> list[Unit]:
    """A block as it is, or each of its layers. ConfigError for an unknown granularity."""
    check_name(granularity, GRANULARITIES, "granularity")
    if granularity != "layer":
        return [block]
    return [Unit(site_name(node), node.args[0], (node,)) for node in block.layers]  # type: ignore[arg-type]


def pieces(graph: fx.Graph, granularity: str) -> list[Unit]:
    """The blocks of a graph, or all of it as one unit. Introduced in notebook 10."""
    check_name(granularity, GRANULARITIES, "granularity")
    found = blocks(graph)
    if granularity != "network":
        return found
    return [Unit("network", found[0].source, tuple(node for block in found for node in block.nodes))]


def _name(nodes: list[fx.Node]) -> str:
    """What the names of the layers have in common: "layer3.1" for layer3.1.conv1 to layer3.1.conv3."""
    names = [site_name(node) for node in nodes if has_weight(node)]
    if len(names) == 1:
        return names[0]
    common = os.path.commonprefix([name.split(".") for name in names])  # of lists, it compares their items
    return ".".join(common) or f"{names[0]}..{names[-1]}"

"""Cross-layer equalization: give the channels between two layers like ranges, without changing the network.

A ReLU commutes with positive factors: relu(x / s) * s = relu(x). So channel j of a layer's output may be
divided by any s[j] > 0 if the layer that reads it multiplies by s[j]. In float32 nothing changes; on integer
grids, where all channels of a tensor share one step, it decides whether small channels survive.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from torch import Tensor, fx, nn

from quantlib.errors import ConfigError
from quantlib.quantization.graph import canonical_copy, kind, module_of
from quantlib.quantization.qconfig import check_name
from quantlib.quantization.sites import has_weight, layers_of

MEASURES = ("magnitude", "span")
"""How wide a channel is: its largest absolute weight, or its largest weight minus its smallest."""


def links(graph: fx.Graph) -> list[tuple[fx.Node, fx.Node]]:
    """The pairs of layers (first, second) of a canonical graph that can share a scale per channel.

    Nothing but a ReLU or a pooling lies between, and nobody else reads what lies between: in a ResNet the
    residual add blocks all links but those inside a block. ReLU6 has a fixed ceiling, so it blocks too.
    A layer that is called twice, or shares its weight, is in no pair. Introduced in notebook 10.
    """
    layers = layers_of(graph)
    owners = Counter(id(module_of(node).weight) for node in layers)
    found = []
    for node in graph.nodes:
        if not has_weight(node):
            continue
        before = node.args[0]
        while kind(before) in ("relu", "pool") and len(before.users) == 1 and not _has_ceiling(before):
            before = before.args[0]
        if not has_weight(before) or len(before.users) > 1 or _has_ceiling(before):
            continue
        if kind(before) != kind(node):
            continue  # a linear layer that reads an image directly reads its width, not its channels
        if all(owners[id(module_of(layer).weight)] == 1 for layer in (before, node)):
            found.append((before, node))
    return found


def _has_ceiling(node: fx.Node) -> bool:
    module = module_of(node)
    return isinstance(module, nn.ReLU6) or getattr(module, "ceiling", None) is not None


def equalizing_factors(first: Tensor, second: Tensor) -> Tensor:
    """s = sqrt(first / second), shape (channels,): dividing by s and multiplying by it makes both equal.

        first / s = second * s = sqrt(first * second)

    first, second: width of each channel in the layer that makes it and in the one that reads it; a channel
    of width 0 on either side is left alone (s = 1). Source: Nagel et al. 2019, equation 11.
    Introduced in notebook 10.

    >>> equalizing_factors(torch.tensor([8.0, 0.5]), torch.tensor([2.0, 0.5])).tolist()
    [2.0, 1.0]
    """
    s = torch.sqrt(first) / torch.sqrt(second)  # the quotient alone can leave float32
    return torch.where((first > 0) & (second > 0), s, torch.ones_like(s))


def equalize(
    model: nn.Module, measure: str = "magnitude", tolerance: float = 1e-4, rounds: int = 50
) -> fx.GraphModule:
    """The canonical graph of `model`, on a copy, with the channels of every link equalized.

    Sweeps over all links until no factor of a whole sweep is further than `tolerance` from 1, at most
    `rounds` times: one link undoes a little of what its neighbour did. `measure`: one of MEASURES; "span" is
    torch.ao's, "magnitude" the paper's, for symmetric grids. Raises ConfigError for another measure.
    Introduced in notebook 10.
    """
    check_name(measure, MEASURES, "measure")
    graph = canonical_copy(model)
    pairs = links(graph.graph)
    for _ in range(rounds):
        farthest = 0.0
        for first, second in pairs:
            a, b = module_of(first), module_of(second)
            s = equalizing_factors(
                _width(_outputs(a.weight), measure), _width(_inputs(b), measure)  # type: ignore[arg-type]
            )  # fmt: skip
            _rescale(a, b, s)
            farthest = max(farthest, float((s - 1).abs().max()))
        if farthest <= tolerance:
            break
    return graph


def unbalance(model: nn.Module, spread: float = 10.0, seed: int = 0) -> fx.GraphModule:
    """The canonical graph of `model`, on a copy, badly scaled on purpose: the same function in float32.

    The channels of every link are divided by exp(u), u uniform in +-log(spread), drawn by
    `numpy.random.default_rng(seed)`, and multiplied again by the layer that reads them.
    Raises ConfigError unless spread >= 1. Introduced in notebook 10.
    """
    if not spread >= 1:
        raise ConfigError(f"spread is the largest factor, 1 or more; not {spread}.")
    graph, rng = canonical_copy(model), np.random.default_rng(seed)
    for first, second in links(graph.graph):
        a, b = module_of(first), module_of(second)
        draws = rng.uniform(-math.log(spread), math.log(spread), len(a.weight))  # type: ignore[arg-type]
        _rescale(a, b, torch.from_numpy(np.exp(draws)).float())
    return graph


def _outputs(weight: Tensor) -> Tensor:
    """The weights as (output channels, the rest)."""
    return weight.detach().flatten(1)


def _inputs(layer: nn.Module) -> Tensor:
    """The weights as (input channels, the rest); group g of a grouped convolution reads its own channels."""
    groups = int(getattr(layer, "groups", 1))
    weight: Tensor = layer.weight.detach()  # type: ignore[assignment, operator]
    parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return parts.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def _width(rows: Tensor, measure: str) -> Tensor:
    if measure == "magnitude":
        return rows.abs().amax(1)
    return rows.amax(1) - rows.amin(1)


@torch.no_grad()
def _rescale(first: nn.Module, second: nn.Module, s: Tensor) -> None:
    """Divide the channels between two layers by s, and multiply them again."""
    weight, bias = first.weight, first.bias
    weight.div_(s.reshape(-1, *[1] * (weight.dim() - 1)))  # type: ignore[operator]
    if bias is not None:
        bias.div_(s)  # type: ignore[operator]
    groups, reader = int(getattr(second, "groups", 1)), second.weight
    out, own = reader.shape[:2]  # type: ignore[union-attr, index]
    factors = s.reshape(groups, 1, own).expand(groups, out // groups, own).reshape(out, own)
    reader.mul_(factors.reshape(out, own, *[1] * (reader.dim() - 2)))  # type: ignore[operator]

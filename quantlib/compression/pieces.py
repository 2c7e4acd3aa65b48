"""A network as a chain: cut wherever one tensor carries everything, and every piece runs on its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from quantlib.errors import ConfigError
from quantlib.quantization.sites import carriers

LAYERS = (nn.Conv2d, nn.Linear)
"""A piece begins where one of these reads the tensor that carries everything."""


def pieces(model: nn.Module, like: Sequence[str] | None = None) -> dict[str, fx.GraphModule]:
    """The network as modules that follow each other, by the name of the layer that each begins with.

        model(x) = pieces[-1](.. pieces[1](pieces[0](x)))

    They share their modules with `model`, batch norms included, so what a piece learns the network has
    learned. In a ResNet that is the stem, each residual block, and the classifier (the pooling belongs to
    the last block). `like`: names of the pieces of another network with the same blocks; a layer that has
    been split since ("layer1.0.conv1" into "layer1.0.conv1.0" and so on) begins the piece of its old name.
    Raises ConfigError for a network without layers, and where the chain of `like` cannot be found.
    Introduced in notebook 11.
    """
    traced = fx.symbolic_trace(model)
    nodes = [node for node in traced.graph.nodes if node.op != "output"]
    cuts: dict[str, int] = {}
    for place in carriers(nodes):
        reader = _layer_behind(traced, nodes[place])
        name = reader if like is None else next((each for each in like if _within(reader, each)), "")
        if name and name not in cuts:
            cuts[name] = place
    if like is not None and list(cuts) != list(like):
        raise ConfigError(f"{type(model).__name__} does not fall into the pieces {', '.join(like)}.")
    if not cuts:
        raise ConfigError(f"{type(model).__name__} has no layer to cut before.")
    ends = [*list(cuts.values())[1:], len(nodes) - 1]
    return {
        name: _piece(traced, nodes[begin : end + 1])
        for (name, begin), end in zip(cuts.items(), ends, strict=True)
    }


def _layer_behind(traced: fx.GraphModule, node: fx.Node) -> str:
    """The layer with weights that reads a node first, or ""."""
    read_by = [user for user in node.users if user.op == "call_module"]
    names = [str(user.target) for user in read_by]
    return next((name for name in names if isinstance(traced.get_submodule(name), LAYERS)), "")


def _within(name: str, whole: str) -> bool:
    return name == whole or name.startswith(f"{whole}.")


def _piece(traced: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    """The nodes behind the first one as a module that reads the first one's tensor."""
    graph = fx.Graph()
    copied = {nodes[0]: graph.placeholder("x")}
    for node in nodes[1:]:
        copied[node] = graph.node_copy(node, copied.__getitem__)
    graph.output(copied[nodes[-1]])
    return fx.GraphModule(traced, graph)

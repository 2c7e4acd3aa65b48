"""Sites: the tensors of a canonical graph that get a grid of their own, and their names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from quantlib.errors import ConfigError, NonFiniteError, NotCalibratedError, UnsupportedOperatorError
from quantlib.quantization.graph import kind, scope

SHARING = ("pool", "flatten")
"""Kinds that keep the grid of their input: they choose or average among its values."""


class naming:
    """Context: prefix the errors of an observer by what it was watching."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (NonFiniteError, NotCalibratedError)):
            raise type(error)(f"At {self.place}: {error}") from error


def site_name(node: fx.Node) -> str:
    """The name of the tensor that a node makes: "input", or the operator's name.

    Introduced in notebook 07.
    """
    if node.op == "placeholder":
        return "input"
    if node.op == "call_module":
        return str(node.target)
    return f"{scope(node)}.{node.name}" if scope(node) else node.name


def source(node: fx.Node) -> fx.Node:
    """The node whose grid a tensor has: itself, or what a pooling or flattening started from.

    Introduced in notebook 07.
    """
    while kind(node) in SHARING:
        node = node.args[0]  # type: ignore[assignment]
    return node


def is_site(node: fx.Node, quantize_output: bool = False) -> bool:
    """Whether a node's tensor gets a grid of its own: it feeds an operator, or is one's result."""
    if node.op == "output" or kind(node) in SHARING:
        return False
    found = readers(node)
    feeds = any(kind(reader) for reader in found)
    is_result = any(reader.op == "output" for reader in found)
    if is_result and not feeds:
        return quantize_output and bool(kind(node))
    return feeds or bool(kind(node))


def readers(node: fx.Node) -> list[fx.Node]:
    """Whoever reads a tensor, seen through poolings and flattenings."""
    found: list[fx.Node] = []
    for user in node.users:
        found += readers(user) if kind(user) in SHARING else [user]
    return found


OWN_NAMES = ("input", "dequantize", "images")
"""What quantlib calls the tensors at the ends of a network, here and in ONNX."""


def has_weight(node: fx.Node) -> bool:
    """Whether a node is a convolution or a linear layer."""
    return kind(node) in ("conv", "linear")


def layers_of(graph: fx.Graph) -> list[fx.Node]:
    """The convolutions and linear layers of a canonical graph, in order."""
    return [node for node in graph.nodes if has_weight(node)]


def check_ends(graph: fx.Graph) -> None:
    """UnsupportedOperatorError unless one tensor goes in and one comes out, ConfigError for names of ours."""
    outputs = [node.args[0] for node in graph.nodes if node.op == "output"]
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or not isinstance(outputs[0], fx.Node):
        raise UnsupportedOperatorError(
            "quantlib takes networks of one input and one output tensor; split this one."
        )
    for node in graph.nodes:
        if node.op == "call_module" and node.target in OWN_NAMES:
            raise ConfigError(
                f"Rename the layer {node.target!r}: quantlib uses that name for a tensor of its own."
            )


def carriers(nodes: Sequence[fx.Node]) -> list[int]:
    """Places of the nodes that alone are read by whatever comes later: there a network can be cut in two.

    nodes: of a graph, in its order, without its output. Introduced in notebook 10.
    """
    place = {node: i for i, node in enumerate(nodes)}
    last = [max((place.get(user, len(nodes)) for user in node.users), default=-1) for node in nodes]
    return [i for i in range(len(nodes)) if max(last[:i], default=-1) <= i]

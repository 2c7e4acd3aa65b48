"""The integer network as a graph of steps: what runs it, and what shows its integers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from quantlib.quantization.graph import module_of
from quantlib.quantization.mixed_layers import SUB_BATCH

LAST = "dequantize"
"""The name of the step that makes logits."""


class Step(NamedTuple):
    """One operator of the integer graph: its name, its module, and what it reads, "" for the images."""

    name: str
    module: nn.Module
    inputs: list[str]


class Integer(nn.Module):
    """A network of integers: (n, c, h, w) float32 in, float32 logits out, uint8 and int32 between.

    The exact reference, on the CPU: every accumulator is an int32 that fits. `graph_module`: Quantize,
    called "input", the integer operators by their layers' names, Dequantize, called "dequantize";
    `rounding`: one of ROUNDINGS; `sub_batch` images go through together. Introduced in notebook 08.
    """

    def __init__(self, graph: fx.GraphModule, rounding: str, sub_batch: int = SUB_BATCH) -> None:
        super().__init__()
        self.graph_module, self.rounding, self.sub_batch = graph, rounding, sub_batch

    @property
    def weight_bytes(self) -> int:
        """Bytes of everything that is kept: int8 weights, int32 biases, float32 scales."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state_dict().values())

    @property
    def steps(self) -> list[Step]:
        """The operators in the order of their execution."""
        return steps_of(self.graph_module)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of any size."""
        return torch.cat([self.graph_module(part) for part in x.split(self.sub_batch)])

    @torch.no_grad()
    def integers(self, x: Tensor) -> dict[str, Tensor]:
        """The integers that every operator puts out, by name, "input" first: uint8, or int32 at the end."""
        parts = [record(self.graph_module, part) for part in x.split(self.sub_batch)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != LAST}


def record(graph: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    """What each module of the graph puts out, by name."""
    recording = _Recording(graph)
    recording.run(x)
    return recording.seen


class _Recording(fx.Interpreter):
    """Runs the graph and keeps what each module puts out."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # a sentence of ours is not to be followed by a page of fx's
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_module":
            self.seen[str(n.target)] = value
        return value


def steps_of(graph: fx.GraphModule) -> list[Step]:
    """The operators of a graph of modules, in the order of their execution."""
    nodes = [node for node in graph.graph.nodes if node.op == "call_module"]
    return [
        Step(str(node.target), module_of(node), [_made_by(each) for each in arguments(node)])
        for node in nodes
    ]


def assemble(steps: Iterable[Step], rounding: str) -> Integer:
    """The network of these steps, in order; the first reads the images, the last makes the logits."""
    modules: dict[str, nn.Module] = {}
    graph = fx.Graph()
    made = {"": graph.placeholder("images")}
    for name, module, inputs in steps:
        modules[name] = module
        made[name] = graph.create_node("call_module", name, tuple(made[each] for each in inputs))
    graph.output(made[name])
    return Integer(fx.GraphModule(modules, graph, "IntegerGraph"), rounding).eval()  # type: ignore[arg-type]


def _made_by(node: fx.Node) -> str:
    """The name of the step that makes a tensor; "" for the images."""
    return "" if node.op == "placeholder" else str(node.target)


def arguments(node: fx.Node) -> list[fx.Node]:
    """What a node reads, twice when it reads it twice."""
    return [item for item in node.args if isinstance(item, fx.Node)]

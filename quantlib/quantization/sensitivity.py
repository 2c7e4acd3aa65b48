"""Which layer hurts? One layer at a time loses bits, and the network says what that costs it.

The float32 network runs once, node by node. Where a layer is to be tested, what has been computed so far is
kept, and only the rest of the network runs again: half the work, on average, of running all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from quantlib.errors import ConfigError, UnsupportedOperatorError
from quantlib.progress import progress
from quantlib.quantization.affine import QParams, fake_quantize
from quantlib.quantization.canonical import works_in_place
from quantlib.quantization.qconfig import check_name
from quantlib.quantization.simulated import FakeQuantizedWeight, simulated_layer
from quantlib.quantization.sites import naming, site_name
from quantlib.quantization.workflow import Prepared
from quantlib.subject.data import Images, batches
from quantlib.subject.evaluation import Evaluation

PARTS = ("weight", "activation")
"""What one layer loses bits in: its weight, or the tensor that it puts out."""

Values = dict[fx.Node, Any]
"""What each node of the graph has made."""


@dataclass
class Power:
    """Energy of a signal and of its error, summed over batches."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Tensor, approximation: Tensor) -> None:
        """Take in one pair of tensors."""
        self.signal += float(reference.double().square().sum())
        self.noise += float((reference.double() - approximation.double()).square().sum())

    @property
    def sqnr_db(self) -> float:
        """10 log10(signal / noise); infinite without noise."""
        if not self.noise:
            return float("inf")
        return float(10 * np.log10(self.signal / self.noise)) if self.signal else float("-inf")


@dataclass(frozen=True)
class Sensitivity:
    """What it costs that one layer alone loses bits.

    sqnr_db: of the rounded tensor itself (the weight; for part "activation" the output), no network needed;
    output_sqnr_db: of the layer's output on the images; noise: squared error of the rounded tensor, summed;
    values: how many numbers a weight (or the output of one image) has; loss_rise: mean cross-entropy minus
    that of the float32 network, in nats; evaluation: accuracy, with every prediction. Notebook 09.
    """

    layer: str
    part: str
    bits: int
    values: int
    sqnr_db: float
    output_sqnr_db: float
    noise: float
    loss_rise: float
    evaluation: Evaluation


@dataclass(frozen=True)
class Sensitivities:
    """The float32 network's evaluation and mean cross-entropy, and every layer's Sensitivity, in order."""

    float32: Evaluation
    loss: float
    layers: list[Sensitivity]


@dataclass
class _Trial:
    """One layer on trial: how its output is made, and what came of it so far."""

    altered: Callable[[Tensor, Tensor], Tensor]
    bits: int
    values: int
    tensor: Power = field(default_factory=Power)
    output: Power = field(default_factory=Power)
    logits: list[Tensor] = field(default_factory=list)


def layer_sensitivity(
    prepared: Prepared, images: Images, part: str = "weight", batch_size: int = 32
) -> Sensitivities:
    """Quantize one layer after the other, alone, on the grids of `prepared`; the rest stays float32.

    part "weight": every layer with a weight observer, no calibration needed; "activation": the output of
    every operator with an activation observer, "input" included. Testing layer k runs the network from k on.
    Labels of shape (n, classes) are taken as probabilities; with those of the float32 network itself,
    loss_rise is the Kullback-Leibler divergence from it, and no true label is used (notebook 10).
    Raises ConfigError for another part or without a layer to test, NotCalibratedError for "activation"
    before calibrate. Introduced in notebook 09.
    """
    check_name(part, PARTS, "part")
    trials = _weights(prepared) if part == "weight" else _activations(prepared)
    if not trials:
        raise ConfigError(f"No layer of this network has a Scheme for its {part}; give the QConfig one.")
    graph, logits = _Walk(prepared.graph_module), []
    steps = progress(batches(images, batch_size), "sensitivity", -(-len(images) // batch_size), "batch")
    with torch.no_grad():
        for x, _ in steps:
            logits.append(graph.run(x, trials))
    labels = images.labels
    float32, loss = _judged(logits, labels)
    rows = []
    for name, trial in trials.items():
        evaluation, own = _judged(trial.logits, labels)
        rows.append(
            Sensitivity(
                name, part, trial.bits, trial.values, trial.tensor.sqnr_db, trial.output.sqnr_db,
                trial.tensor.noise, own - loss, evaluation,
            )
        )  # fmt: skip
    return Sensitivities(float32, loss, rows)


def _judged(logits: list[Tensor], labels: Tensor) -> tuple[Evaluation, float]:
    every = torch.cat(logits)
    soft = labels.dim() == 2
    loss = float(F.cross_entropy(every.double(), labels.double() if soft else labels))
    return Evaluation.of(every.argmax(1).numpy(), (labels.argmax(1) if soft else labels).numpy()), loss


def _weights(prepared: Prepared) -> dict[str, _Trial]:
    trials = {}
    for name, observer in prepared.weights.items():
        with naming(f"the weight of {name!r}"):
            layer = simulated_layer(prepared.graph_module.get_submodule(name), observer.qparams()).eval()
        assert isinstance(layer, FakeQuantizedWeight)
        trial = _Trial(_by(layer), observer.bits, layer.weight.numel())
        with torch.no_grad():
            trial.tensor.add(layer.weight, layer.quantized_weight())
        trials[name] = trial
    return trials


def _by(layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, output: layer(x)


def _on(grid: QParams) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, output: fake_quantize(output, grid)


def _activations(prepared: Prepared) -> dict[str, _Trial]:
    trials = {}
    for name, observer in prepared.activations.items():
        grid = prepared.qparams(name)
        trials[name] = _Trial(_on(grid), observer.bits, 0)
        trials[name].tensor = trials[name].output  # what is rounded is the output
    return trials


class _Walk:
    """The float32 graph, run node by node; at each layer on trial the rest is run once more."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.nodes = list(graph.graph.nodes)
        modules = dict(graph.named_modules())
        for node in self.nodes:  # it would change what is kept for the next trial
            if works_in_place(node, modules):
                raise UnsupportedOperatorError(f"{node.name} works in place; write it so that it does not.")
        self.interpreter = fx.Interpreter(graph)
        place = {node: i for i, node in enumerate(self.nodes)}
        self.last = {node: max((place[user] for user in node.users), default=0) for node in self.nodes}

    def run(self, x: Tensor, trials: dict[str, _Trial]) -> Tensor:
        """The float32 logits of one batch; the altered ones go to the trials."""
        values: Values = {}
        for i, node in enumerate(self.nodes):
            if node.op == "output":
                break
            values[node] = x if node.op == "placeholder" else self._value(node, values)
            trial = trials.get(site_name(node))
            if trial is not None:
                trial.logits.append(self._with(trial, i, values))
            self._let_go(i, values)
        logits: Tensor = values[self.nodes[-1].args[0]]
        return logits

    def _with(self, trial: _Trial, i: int, values: Values) -> Tensor:
        """The logits when node `i` makes the trial's output."""
        node = self.nodes[i]
        exact, inputs = values[node], [values[each] for each in node.all_input_nodes]
        altered = trial.altered(inputs[0] if inputs else exact, exact)
        trial.output.add(exact, altered)
        trial.values = trial.values or exact[0].numel()
        rest = {**values, node: altered}
        self._let_go(i, rest)
        for j in range(i + 1, len(self.nodes) - 1):
            rest[self.nodes[j]] = self._value(self.nodes[j], rest)
            self._let_go(j, rest)
        logits: Tensor = rest[self.nodes[-1].args[0]]
        return logits

    def _value(self, node: fx.Node, values: Values) -> Any:
        self.interpreter.env = values
        return self.interpreter.run_node(node)

    def _let_go(self, i: int, values: Values) -> None:
        """Forget what no node after `i` reads."""
        for node in [node for node in values if self.last[node] <= i]:
            del values[node]

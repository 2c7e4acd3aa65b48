"""A float network and its low-bit twin, run piece by piece on the same graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from quantlib.errors import ConfigError
from quantlib.quantization.affine import QParams, dequantize
from quantlib.quantization.fused import FusedConv2d, Rectified
from quantlib.quantization.observers.fixed import FixedObserver
from quantlib.quantization.qconfig import check_name
from quantlib.quantization.reconstruction.balance import rounded as round_weight
from quantlib.quantization.reconstruction.ranges import LearnedRange
from quantlib.quantization.reconstruction.rounding import SoftRounding, integers
from quantlib.quantization.reconstruction.units import Unit
from quantlib.quantization.simulated import needs_rounding
from quantlib.quantization.sites import naming, site_name, source
from quantlib.quantization.workflow import Prepared

PLACES = ("mixed", "integer", "simulated")
"""Where activations are rounded: "mixed": what enters a layer; the other two: every tensor, adds as well."""

Values = dict[fx.Node, Tensor]


class LowBitNetwork:
    """The float network of a calibrated `Prepared`, and its low-bit twin with weights of its own.

    kind: the kind that `convert` shall make in the end; it decides which tensors are rounded (PLACES).
    rounding: how its weights are rounded to begin with, one of WEIGHT_ROUNDINGS.
    `weights`, `biases`: of the twin, weights on the grid `grids`; `soft`: layers whose rounding is being
    trained; `ranges`: activation grids by site. Raises ConfigError for another kind, NotCalibratedError
    before calibrate. Introduced in notebook 10.
    """

    def __init__(self, prepared: Prepared, kind: str, rounding: str = "nearest") -> None:
        check_name(kind, PLACES, "kind")
        if not isinstance(prepared, Prepared):
            raise ConfigError("Reconstruction needs what prepare returned; call prepare and calibrate first.")
        self.prepared, self.kind = prepared, kind
        self.graph = prepared.graph_module
        self.interpreter = fx.Interpreter(self.graph)
        self.soft: dict[str, SoftRounding] = {}
        self.settled: set[str] = set()  # ranges that a unit has learned: one that reads them too leaves them
        self.weights: dict[str, Tensor] = {}
        self.biases: dict[str, Tensor | None] = {}
        self.grids: dict[str, QParams] = {}
        for name, observer in prepared.weights.items():
            with naming(f"the weight of {name!r}"):
                grid = observer.qparams()
            weight, bias = self._layer(name).weight, self._layer(name).bias
            self.weights[name], self.grids[name] = round_weight(weight, grid, rounding)  # type: ignore[arg-type]
            self.biases[name] = None if bias is None else bias.detach().clone()  # type: ignore[operator]
        self.ranges = {name: LearnedRange(prepared.tensor_grid(name)) for name in prepared.activations}

    def _layer(self, name: str) -> nn.Module:
        return self.graph.get_submodule(name)

    def run(self, unit: Unit, x: Tensor, low_bit: bool = True, until: fx.Node | None = None) -> Tensor:
        """The tensor of `until` (by default the unit's result) for `x` in the place of its source."""
        values: Values = {unit.source: self._entering(unit, x) if low_bit else x}
        rounded: Values = {}
        until = until or unit.result
        for node in unit.nodes:
            if until in values:
                break
            values[node] = self._low(node, values, rounded) if low_bit else self._plain(node, values)
        return values[until]

    def _entering(self, unit: Unit, x: Tensor) -> Tensor:
        """The images are rounded here; every other unit gets what the one before it has rounded."""
        if unit.source.op != "placeholder" or self.kind == "mixed":
            return x
        found = self.ranges.get(site_name(unit.source))
        return x if found is None else found(x)

    def _plain(self, node: fx.Node, values: Values) -> Tensor:
        self.interpreter.env = values  # type: ignore[assignment]
        result: Tensor = self.interpreter.run_node(node)
        return result

    def _low(self, node: fx.Node, values: Values, rounded: Values) -> Tensor:
        """One node of the twin; `rounded` keeps what several layers read, rounded once."""
        name = site_name(node)
        if name not in self.weights:
            y = self._plain(node, values)
        else:
            read = node.args[0]
            assert isinstance(read, fx.Node)
            if read not in rounded:
                entering = self.ranges.get(site_name(source(read))) if self.kind == "mixed" else None
                rounded[read] = values[read] if entering is None else entering(values[read])
            y = apply_layer(self._layer(name), rounded[read], self._weight(name), self.biases[name])
        if self.kind == "mixed" or not needs_rounding(node):
            return y
        leaving = self.ranges.get(site_name(source(node)))
        return y if leaving is None else leaving(y)

    def _weight(self, name: str) -> Tensor:
        weight: Tensor = self.soft[name]() if name in self.soft else self.weights[name]
        return weight

    def before_relu(self, unit: Unit, x: Tensor, node: fx.Node, low_bit: bool) -> Tensor:
        """What a layer of the unit sums up, before its ReLU and before any rounding of the result."""
        name, read = site_name(node), node.args[0]
        assert isinstance(read, fx.Node)
        y = self.run(unit, x, low_bit, until=read)
        layer = self._layer(name)
        if not low_bit or name not in self.weights:
            return weighted_sum(layer, y, layer.weight, layer.bias)  # type: ignore[arg-type]
        entering = self.ranges.get(site_name(source(read))) if self.kind == "mixed" else None
        y = y if entering is None else entering(y)
        return weighted_sum(layer, y, self._weight(name), self.biases[name])

    def ranges_of(self, unit: Unit) -> dict[str, LearnedRange]:
        """The activation grids that running the unit uses and that are its own to train."""
        if self.kind == "mixed":
            layers = [node for node in unit.layers if site_name(node) in self.weights]
            read = [source(node.args[0]) for node in layers]  # type: ignore[arg-type]
            names = [site_name(node) for node in read]
        else:
            names = [site_name(node) for node in unit.nodes if needs_rounding(node)]
            names += [site_name(unit.source)] if unit.source.op == "placeholder" else []
        return {name: self.ranges[name] for name in dict.fromkeys(names) if name in self.ranges}

    # The state of a unit, and the end -------------------------------------------------------------------

    def state(self, unit: Unit) -> dict[str, Tensor]:
        """What was learned in a unit: integers and scales of its weights, biases, scales of its ranges."""
        found = {
            f"range:{name}": each.log_scale.detach().clone() for name, each in self.ranges_of(unit).items()
        }
        for name in self._learned(unit):
            bias = self.biases[name]
            found[f"integers:{name}"] = integers(self.weights[name], self.grids[name])
            found[f"scale:{name}"] = self.grids[name].scale.clone()
            if bias is not None:
                found[f"bias:{name}"] = bias.clone()
        return found

    @torch.no_grad()
    def load_state(self, unit: Unit, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave. KeyError when it is the state of another unit."""
        for name, each in self.ranges_of(unit).items():
            each.log_scale.copy_(state[f"range:{name}"])
        for name in self._learned(unit):
            self.grids[name] = grid = replace(self.grids[name], scale=state[f"scale:{name}"])
            self.weights[name] = dequantize(state[f"integers:{name}"], grid)
            if self.biases[name] is not None:
                self.biases[name] = state[f"bias:{name}"].clone()

    def _learned(self, unit: Unit) -> list[str]:
        return [site_name(node) for node in unit.layers if site_name(node) in self.weights]

    def finish(self) -> Prepared:
        """A `Prepared` whose `convert` gives this twin: weights on their grids, grids fixed."""
        graph = copy.deepcopy(self.graph)
        made = Prepared(graph, self.prepared.qconfig).eval()
        for name, weight in self.weights.items():
            layer = graph.get_submodule(name)
            layer.weight = nn.Parameter(weight.clone())
            bias = self.biases[name]
            layer.register_parameter("bias", None if bias is None else nn.Parameter(bias.clone()))
            made.weights[name] = FixedObserver(self.grids[name], self.prepared.weights[name])
        for name, learned in self.ranges.items():
            made.set_observer(name, FixedObserver(learned.grid, self.prepared.activations[name]))
        return made


def apply_layer(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A fused convolution or linear layer with other weights than its own. Introduced in notebook 10."""
    assert isinstance(layer, Rectified)
    return layer.rectified(weighted_sum(layer, x, weight, bias))


def weighted_sum(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution or matrix product alone, without the ReLU. Introduced in notebook 10."""
    if isinstance(layer, FusedConv2d):
        return layer._conv_forward(x, weight, bias)
    return F.linear(x, weight, bias)

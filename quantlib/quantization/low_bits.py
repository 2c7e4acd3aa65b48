"""How a low-bit network is set up: which tensor gets how many bits, and on which grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from quantlib.errors import ConfigError
from quantlib.quantization.graph import module_of
from quantlib.quantization.qconfig import QConfig, Scheme, check_name
from quantlib.quantization.sites import has_weight, is_site, layers_of, site_name, source

ENDS = ("8", "same")
"""The first and the last layer: 8 bits in weights and input, as most papers do, or the same as all others."""

FLOAT_BITS = 32
"""So many bits mean: left in float32."""

ACTIVATION_OBSERVER = "aciq"
"""Of activations in few bits. A range of least squared error serves the few channels with large values and
loses the rest; aciq's, which clips them, lost least on validation images (notebook 03)."""

Widths = int | Mapping[str, int]
"""One width for all, or one for each by name."""


def weight_scheme(bits: int, ratios: int = 100, narrow: bool = False, observer: str = "mse") -> Scheme | None:
    """Signed weights without a zero point, one scale per channel, of least squared error or by `observer`.

    All 2**bits integers are used below 8 bits, unless `narrow`: then the lowest is left out, and both ends
    are alike (notebook 05). ratios: how many ranges the search tries. Introduced in notebook 10.

    >>> weight_scheme(2).observer_instance().quant_min
    -2
    """
    if bits == FLOAT_BITS:
        return None
    return Scheme(
        bits, symmetric=True, per_channel=True, narrow_range=narrow or bits == 8, observer=observer,
        options={"ratios": ratios} if observer == "mse" else {},
    )  # fmt: skip


def activation_scheme(bits: int, observer: str = ACTIVATION_OBSERVER) -> Scheme | None:
    """Unsigned activations with a zero point, one range per tensor. Notebook 10.

    Introduced in notebook 10.
    """
    return None if bits == FLOAT_BITS else Scheme(bits, observer=observer)


def low_bit_qconfig(
    graph: fx.Graph, weight: Widths, activation: Widths, ends: str = "8", ratios: int = 100,
    observer: str = ACTIVATION_OBSERVER, narrow: bool = False, weight_observer: str = "mse",
) -> QConfig:  # fmt: skip
    """The QConfig that gives each layer's weight and each tensor its width; 32 leaves it in float32.

    weight: one width, or one for each layer by name; activation: one, or one for each tensor by the name of
    the operator that makes it, "input" included. ends: one of ENDS; "8" overrides the other two for the
    first and the last layer and what they read. observer: of the activations; narrow, weight_observer:
    of the weights, see `weight_scheme`. Raises ConfigError for another `ends`, or a name that the graph does
    not have. Introduced in notebook 10.
    """
    check_name(ends, ENDS, "ends")
    layers = [site_name(node) for node in layers_of(graph)]
    sites = [site_name(node) for node in graph.nodes if is_site(node)]
    of_weight, of_activation = _each(weight, layers, "layer"), _each(activation, sites, "tensor")
    if ends == "8":
        for node in first_and_last(graph):
            of_weight[site_name(node)] = 8 if of_weight[site_name(node)] != FLOAT_BITS else FLOAT_BITS
            read = site_name(source(node.args[0]))  # type: ignore[arg-type]
            of_activation[read] = 8 if of_activation[read] != FLOAT_BITS else FLOAT_BITS
    by_name = {
        name: QConfig(
            weight_scheme(of_weight.get(name, FLOAT_BITS), ratios, narrow, weight_observer),
            activation_scheme(of_activation.get(name, FLOAT_BITS), observer),
        )
        for name in dict.fromkeys([*layers, *sites])
    }
    return QConfig(None, None, by_name=by_name)


def _each(widths: Widths, names: list[str], what: str) -> dict[str, int]:
    if not isinstance(widths, Mapping):
        return dict.fromkeys(names, widths)
    for name in widths:
        check_name(name, names, what)
    return {name: widths.get(name, FLOAT_BITS) for name in names}


def first_and_last(graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
    """The first and the last layer with weights."""
    layers = layers_of(graph)
    if not layers:
        raise ConfigError("This graph has no convolution and no linear layer; take ends='same'.")
    return layers[0], layers[-1]


@dataclass(frozen=True)
class Counts:
    """How much there is of everything, for one image.

    weights: numbers in each layer's weight; activations: numbers in each tensor that gets a grid;
    macs: multiplications of each layer. Introduced in notebook 10.
    """

    weights: dict[str, int] = field(default_factory=dict)
    activations: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)


def counts(graph: fx.GraphModule, example: Tensor) -> Counts:
    """Count weights, activations and multiplications of a canonical graph for one image of `example`.

    Introduced in notebook 10.
    """
    found = Counts()

    class Counting(fx.Interpreter):
        """Runs the graph and counts on the way."""

        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            name = site_name(n) if n.op != "output" else ""
            if n.op != "output" and is_site(n):
                found.activations[name] = value[0].numel()
            if has_weight(n):
                weight: Tensor = module_of(n).weight  # type: ignore[assignment]
                found.weights[name] = weight.numel()
                found.macs[name] = weight.numel() * (value.shape[2:].numel() if value.dim() == 4 else 1)
            return value

    with torch.no_grad():
        Counting(graph).run(example[:1])
    return found

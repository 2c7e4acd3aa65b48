"""The trace of the loss's Hessian, layer by layer, without the Hessian: Hutchinson's estimate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from quantlib.errors import ConfigError
from quantlib.progress import progress
from quantlib.quantization.graph import canonical_copy, module_of
from quantlib.quantization.sites import layers_of


class Trace(NamedTuple):
    """An estimated trace, the standard error of that estimate, and the number of weights it sums over."""

    value: float
    error: float
    weights: int


@torch.enable_grad()  # its caller may not want any
def hessian_traces(
    model: nn.Module, examples: Iterable[tuple[Tensor, Tensor]], samples: int = 8, seed: int = 0
) -> dict[str, Trace]:
    """Trace of d2 loss / d weight2 for each convolution and linear layer, by name.

        tr H = E[v . H v]  for v of independent signs;  H v = d (grad . v) / d weight

    One v over all layers at once serves them all: what two different layers have in common averages out.
    The mean cross-entropy is the loss; each batch (x, labels) of `examples` gets `samples` draws, and the
    error is that of their mean. The signs come from `numpy.random.default_rng(seed)`.
    Raises ConfigError for fewer than two draws in all. Source: Hutchinson 1990; as a measure of sensitivity:
    Dong et al., HAWQ-V2 (2020). Introduced in notebook 09.
    """
    graph = canonical_copy(model)
    assert isinstance(graph, fx.GraphModule)
    layers = layers_of(graph.graph)
    weights: dict[str, Tensor] = {str(node.target): module_of(node).weight for node in layers}  # type: ignore[misc]
    graph.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    rng, draws = np.random.default_rng(seed), []
    for x, labels in progress(examples, "hessian", unit="batch"):
        gradients = torch.autograd.grad(
            F.cross_entropy(graph(x), labels), list(weights.values()), create_graph=True
        )
        for _ in range(samples):
            draws.append(_draw(list(weights.values()), gradients, rng))
    if len(draws) < 2:
        raise ConfigError("An estimate with its error needs two draws: raise samples, or pass batches.")
    table = np.array(draws)
    mean, error = table.mean(0), table.std(0, ddof=1) / np.sqrt(len(table))
    found = zip(weights.items(), mean, error, strict=True)
    return {name: Trace(float(m), float(e), weight.numel()) for (name, weight), m, e in found}


def _draw(weights: list[Tensor], gradients: tuple[Tensor, ...], rng: np.random.Generator) -> list[float]:
    """v . H v of each layer, for one draw of signs."""
    signs = [
        torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), tuple(weight.shape))) for weight in weights
    ]
    signs = [v.to(weight.device, weight.dtype) for v, weight in zip(signs, weights, strict=True)]
    along = sum((g * v).sum() for g, v in zip(gradients, signs, strict=True))
    products = torch.autograd.grad(along, weights, retain_graph=True)  # type: ignore[arg-type]
    return [float((v.double() * hv).sum()) for v, hv in zip(signs, products, strict=True)]


def expected_rise(trace: Trace, noise: float) -> float:
    """What second order expects a rounded layer to add to the loss: tr H / weights * noise / 2, in nats.

    noise: squared error of the rounded weight, summed. As if the error had no preferred direction.
    Introduced in notebook 09.

    >>> expected_rise(Trace(8.0, 0.1, 4), noise=0.5)
    0.5
    """
    return trace.value / trace.weights * noise / 2

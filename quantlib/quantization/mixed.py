"""Mixed FP32/INT8: from a calibrated network to int8 layers, and to a file and back."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from quantlib.errors import CheckpointError, ConfigError
from quantlib.quantization import quantized_file
from quantlib.quantization.affine import QParams, quantize
from quantlib.quantization.graph import canonical_copy, fuse, module_of
from quantlib.quantization.mixed_layers import (
    Mixed,
    MixedConv2d,
    MixedLayer,
    MixedLinear,
    Quantize,
    finish,
    replace_layer,
)
from quantlib.quantization.observers import Observer
from quantlib.quantization.sites import naming, site_name, source
from quantlib.quantization.workflow import Prepared
from quantlib.subject.benchmark import has_vnni
from quantlib.subject.models import MODELS, build

KIND, VERSION = "mixed", 1
"""What the file says of itself."""


def to_mixed(prepared: Prepared) -> Mixed:
    """The network with every observed convolution and linear layer in int8.

    A tensor that several layers read is quantized once. Without VNNI the kernel may add pairs of products in
    int16 and saturate; then a warning says so, and activations use 7 bits (0..127), which cannot.
    Raises ConfigError for weights with a zero point, per-channel activations, or a layer whose input
    stays in float32. Introduced in notebook 07.
    """
    model = copy.deepcopy(prepared.graph_module)
    vnni = has_vnni()
    if not vnni:
        warnings.warn(
            "This CPU has no VNNI: 8-bit activations could saturate int16 sums, so they get 7 bits.",
            stacklevel=3,
        )
    bits = 8 if vnni else 7
    for name, observer in prepared.weights.items():
        node = next(n for n in model.graph.nodes if n.target == name)
        grid = _input_grid(prepared, node, bits)
        replace_layer(model, node, grid, *_integer_weight(name, module_of(node), observer))
    return finish(model)


def _input_grid(prepared: Prepared, node: fx.Node, bits: int) -> QParams:
    """The grid of the tensor that a layer reads, at no more than `bits`."""
    name = site_name(source(node.args[0]))  # type: ignore[arg-type]
    if name not in prepared.activations:
        raise ConfigError(
            f"Layer {node.target!r} has an activation scheme of None at its input {name!r}; "
            "give that one a Scheme, or leave the layer in float32 with by_name={...: None}."
        )
    grid = prepared.tensor_grid(name)
    observer = prepared.activations[name]
    return grid if grid.bits <= bits else observer.grid(*observer.range(), bits=bits)


def weight_grid(name: str, observer: Observer, kind: str) -> QParams:
    """The signed grid without a zero point that int8 kernels need of a weight; ConfigError for another."""
    with naming(f"the weight of {name!r}"):
        grid = observer.qparams()
    if bool((grid.zero_point != 0).any()) or grid.quant_min >= 0:
        raise ConfigError(
            f"Weights of {name!r} have a zero point; {kind} needs Scheme(symmetric=True) for weights, and"
            " signed=None or True."
        )
    return grid


def _integer_weight(name: str, layer: nn.Module, observer: Observer) -> tuple[Tensor, Tensor, Tensor | None]:
    """int8 weight, its scale per output channel, and the float32 bias."""
    grid = weight_grid(name, observer, "mixed")
    with torch.no_grad():
        weight = quantize(layer.weight, grid).contiguous()  # type: ignore[arg-type]
    scale = grid.scale.expand(len(weight)).contiguous()
    bias = None if layer.bias is None else layer.bias.detach().float().clone()  # type: ignore[operator]
    return weight, scale, bias


def save_mixed(model: Mixed, path: str | Path, architecture: str | None = None) -> None:
    """Write a mixed network to one safetensors file: int8 weights, float32 scales and biases, a description.

    `architecture`: a name that `quantlib.subject.models.build` knows, so that the file is enough to load it;
    found by itself when the graph is one of ours. Raises ConfigError for another network.
    Written aside, then renamed: never half a file.
    Introduced in notebook 07.
    """
    if not isinstance(model, Mixed):
        raise ConfigError("Only what convert(..., kind='mixed') returned can be written to this file.")
    description = {
        "architecture": architecture or _architecture(model),
        "layers": _operators(model.graph_module),
        "grids": {name: _describe(step) for name, step in _quantizers(model).items()},
    }
    quantized_file.write(path, KIND, VERSION, dict(model.graph_module.state_dict()), description)


def load_mixed(path: str | Path, model: nn.Module | None = None) -> Mixed:
    """The network that `save_mixed` wrote, bit for bit.

    `model`: the float network, of any weights; needed when the file names no architecture of ours.
    Raises CheckpointError when the file is missing, damaged, of another version or of another architecture,
    or when its description does not fit its tensors.
    Introduced in notebook 07.
    """
    tensors, description = quantized_file.read(path, KIND, VERSION)
    with quantized_file.sense_of(path):
        name, layers, grids = (description[key] for key in ("architecture", "layers", "grids"))
        grids = {layer: (scale, zero, low, high) for layer, (scale, zero, low, high) in grids.items()}
    if model is None and not (isinstance(name, str) and name in MODELS):
        raise CheckpointError(
            f"{path} names no architecture of quantlib's; pass it as load_mixed(path, model=...)."
        )
    model = build(name).eval() if model is None else model
    graph = canonical_copy(model, unsupported="float")
    if _operators(graph) != layers:
        raise CheckpointError(
            f"{path} holds another architecture than {type(model).__name__}; pass the right one."
        )
    if not has_vnni() and any(quant_max > 127 for *_, quant_max in grids.values()):
        warnings.warn(
            f"This CPU has no VNNI: {path} has 8-bit activations, whose int16 sums could saturate; convert "
            "the network on this machine, which gives them 7 bits.",
            stacklevel=2,
        )
    with quantized_file.sense_of(path):
        return _with_kernels(graph, tensors, grids)


def _with_kernels(graph: fx.GraphModule, tensors: dict[str, Tensor], grids: dict[str, Any]) -> Mixed:
    """The folded float network with the int8 kernels of a file in the place of its layers."""
    nodes = {node.target: node for node in graph.graph.nodes}
    for layer, (scale, zero_point, quant_min, quant_max) in grids.items():
        qparams = QParams(torch.tensor(scale), torch.tensor(zero_point), quant_min, quant_max)
        weight, weight_scale = tensors[f"{layer}.weight"], tensors[f"{layer}.weight_scale"]
        bias, own = tensors.get(f"{layer}.bias"), module_of(nodes[layer]).weight
        rows = [weight_scale, *([] if bias is None else [bias])]
        fits = [(each.dtype, each.shape) == (torch.float32, (len(own),)) for each in rows]  # type: ignore
        if (weight.dtype, weight.shape) != (torch.int8, own.shape) or not all(fits):
            raise ValueError(f"the tensors of {layer!r} do not fit")  # the kernels would read beyond them
        replace_layer(graph, nodes[layer], qparams, weight, weight_scale, bias)
    mixed = finish(graph)
    mixed.graph_module.load_state_dict(tensors)
    return mixed


def _operators(graph: fx.GraphModule) -> list[list[Any]]:
    """The architecture: name and weight shape of every convolution and linear layer."""
    kinds = (MixedLayer, nn.Conv2d, nn.Linear)
    layers = {name: module for name, module in graph.named_modules() if isinstance(module, kinds)}
    return sorted([name, list(layer.weight.shape)] for name, layer in layers.items())


def _architecture(model: Mixed) -> str | None:
    """The name of ours whose operators these are."""
    own = _operators(model.graph_module)
    with torch.random.fork_rng(devices=[]):  # nobody's random numbers are moved by saving
        return next((name for name in MODELS if _operators(fuse(build(name).eval())) == own), None)


def _quantizers(model: Mixed) -> dict[str, Quantize]:
    """The Quantize before each int8 layer, in graph order."""
    found = {}
    for node in model.graph_module.graph.nodes:
        if node.op == "call_module" and isinstance(module_of(node), MixedLayer):
            step = module_of(node.args[0])  # type: ignore[arg-type]
            assert isinstance(step, Quantize)
            found[str(node.target)] = step
    return found


def _describe(step: Quantize) -> list[float | int]:
    """[scale, zero_point, quant_min, quant_max]; a float32 survives JSON as the float64 that equals it."""
    return [step.scale, step.zero_point, step.quant_min, step.quant_max]


__all__ = ["Mixed", "MixedConv2d", "MixedLinear", "Quantize", "load_mixed", "save_mixed", "to_mixed"]

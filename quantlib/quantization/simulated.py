"""Simulated quantization: float32 arithmetic on values that lie on integer grids, differentiable."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from quantlib.quantization.affine import QParams, fake_quantize
from quantlib.quantization.fused import FusedConv2d, FusedLinear
from quantlib.quantization.graph import kind, module_of
from quantlib.quantization.kernels import fake_quantize_
from quantlib.quantization.sites import naming, site_name, source
from quantlib.quantization.workflow import Prepared


class FakeQuantize(nn.Module):
    """x to dequantize(quantize(x)), with the straight-through gradient; the grid is held in buffers.

    Any float shape. `overwrites`: without gradients, write the result over `x`, which nearly halves the time
    of a simulated network; a hook that wants the layer's own output must copy it. Introduced in notebook 07.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, qparams: QParams, overwrites: bool = False) -> None:
        super().__init__()
        self.overwrites = overwrites
        self.quant_min, self.quant_max, self.axis = qparams.quant_min, qparams.quant_max, qparams.axis
        self.register_buffer("scale", qparams.scale.clone())
        self.register_buffer("zero_point", qparams.zero_point.clone())

    @property
    def qparams(self) -> QParams:
        """The grid."""
        return QParams(self.scale, self.zero_point, self.quant_min, self.quant_max, self.axis)

    def forward(self, x: Tensor) -> Tensor:
        """Move every value to its nearest grid point."""
        grid = self.qparams
        if self.overwrites and not torch.is_grad_enabled() and grid.axis is None and _is_plain(x):
            return fake_quantize_(x, grid)
        return fake_quantize(x, grid)

    def extra_repr(self) -> str:
        """Integers and axis."""
        return f"{self.quant_min}..{self.quant_max}, axis={self.axis}"


def _is_plain(x: Tensor) -> bool:
    """float32 on the CPU without gaps or overlaps in memory: what the fast kernel takes."""
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x.device.type == "cpu" and x.dtype == torch.float32 and dense


class FakeQuantizedWeight(nn.Module):
    """Mixin: `weight` is fake-quantized on every forward in train mode, and once in eval mode.

    In train mode gradients reach `weight` straight through the rounding (QAT, AdaRound).
    """

    weight: Tensor
    weight_quantizer: FakeQuantize

    def quantized_weight(self) -> Tensor:
        """The weight on its grid, in float32, same shape."""
        if self.training:
            return self.weight_quantizer(self.weight)
        weight, grid = self.weight, self.weight_quantizer
        if weight.is_inference() or grid.scale.is_inference():
            return grid(weight)  # there is no version to tell a change by
        # A change in place of the weight or of its grid changes this key, but for one by `.data`, which torch
        # does not count; another scale is another object. The cache is no part of the state.
        scale = grid.scale
        versions = (weight._version, scale._version, grid.zero_point._version)
        key = (weight.data_ptr(), weight.device, id(scale), *versions)
        if self.__dict__.get("_cache_key") != key:
            # Not an inference tensor: whoever evaluates in inference mode may train afterwards.
            with torch.inference_mode(False), torch.no_grad():
                self.__dict__["_cached"] = grid(weight)
            self.__dict__["_cache_key"] = key
            self.__dict__["_cache_scale"] = scale  # held, so that no other one gets its id
        cached: Tensor = self.__dict__["_cached"]
        return cached

    def train(self, mode: bool = True) -> Any:
        """Switch mode and drop the cached weight."""
        self.__dict__.pop("_cache_key", None)
        return super().train(mode)


class SimulatedConv2d(FakeQuantizedWeight, FusedConv2d):
    """relu(conv2d(x, fake_quantize(weight)) + bias); (n, c, h, w) float32. Introduced in notebook 07."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the weight on its grid, then rectify."""
        return self.rectified(self._conv_forward(x, self.quantized_weight(), self.bias))


class SimulatedLinear(FakeQuantizedWeight, FusedLinear):
    """relu(x fake_quantize(weight)^T + bias); (n, features) float32. Introduced in notebook 07."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply with the weight on its grid, then rectify."""
        return self.rectified(nn.functional.linear(x, self.quantized_weight(), self.bias))


SIMULATED: dict[type[nn.Module], type[nn.Module]] = {
    FusedConv2d: SimulatedConv2d,
    FusedLinear: SimulatedLinear,
}
"""The fake-quantized layer for each fused one."""


def simulated_layer(layer: nn.Module, qparams: QParams) -> nn.Module:
    """The layer with its weight on the grid `qparams`; parameters are shared with `layer`."""
    simulated = SIMULATED[type(layer)]
    new: nn.Module = simulated.__new__(simulated)
    new.__dict__.update(layer.__dict__)
    new._parameters, new._modules = dict(layer._parameters), {}
    new.add_module("weight_quantizer", FakeQuantize(qparams))
    return new


def to_simulated(prepared: Prepared) -> fx.GraphModule:
    """The fused network with fake-quantized weights, and a FakeQuantize behind every observed tensor.

    Average pooling leaves the grid of its input, so a second FakeQuantize of the same grid follows it, as
    the integer kernel would round there. Gradients flow to biases always, to weights in train mode; it comes
    in eval mode, where the rounded weights are kept. Introduced in notebook 07.
    """
    model = copy.deepcopy(prepared.graph_module)
    model.meta.pop("canonical", None)  # it is no float network any more: nothing may be prepared from it
    for name, observer in prepared.weights.items():
        with naming(f"the weight of {name!r}"):
            model.set_submodule(name, simulated_layer(model.get_submodule(name), observer.qparams()))
    grids = {name: prepared.qparams(name) for name in prepared.activations}
    operators = [node for node in model.graph.nodes if node.op != "output" and needs_rounding(node)]
    placed = {node: grids.get(site_name(source(node))) for node in operators}
    for node, grid in placed.items():
        if grid is not None:
            _insert_after(model, node, grid)
    model.graph.lint()
    model.recompile()
    return model.eval()


def needs_rounding(node: fx.Node) -> bool:
    """Whether a tensor can be off the grid it belongs to: not after a max pool or a flattening."""
    if kind(node) == "pool":
        return not isinstance(module_of(node), nn.MaxPool2d)
    return kind(node) != "flatten"


def _insert_after(model: fx.GraphModule, node: fx.Node, grid: QParams) -> None:
    name = f"{site_name(node)}_quantizer"
    # What our operators put out is new memory that no one else reads; the images belong to the caller.
    ours = node.op == "call_module" and (kind(node) or isinstance(module_of(node), FakeQuantizedWeight))
    model.add_submodule(name, FakeQuantize(grid, overwrites=bool(ours)))
    with model.graph.inserting_after(node):
        quantizer = model.graph.call_module(name, (node,))
    node.replace_all_uses_with(quantizer, delete_user_cb=lambda user: user is not quantizer)

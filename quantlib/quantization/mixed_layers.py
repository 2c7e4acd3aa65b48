"""The int8 operators of a mixed network, and how they are put into its graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from quantlib.quantization.affine import QParams
from quantlib.quantization.fused import FusedConv2d, Rectified
from quantlib.quantization.graph import kind, module_of
from quantlib.quantization.kernels import (
    Geometry,
    as_uint8,
    int8_conv,
    int8_linear,
    pack_conv,
    pack_linear,
    quantize_uint8,
)
from quantlib.quantization.sites import site_name

SUB_BATCH = 16
"""Images that go through the network together: more leave the caches, fewer pay too often per call."""


class Quantize(nn.Module):
    """float32 to uint8: clamp(rint(x / scale) + zero_point, quant_min, quant_max). Notebook 07."""

    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        grid = as_uint8(qparams)
        self.scale, self.zero_point = float(grid.scale), int(grid.zero_point)
        self.inverse = float(1.0 / grid.scale)
        self.quant_min, self.quant_max = grid.quant_min, grid.quant_max

    def forward(self, x: Tensor) -> Tensor:
        """Integers of `x`, uint8, same shape."""
        return quantize_uint8(x, self.inverse, self.zero_point, self.quant_min, self.quant_max)

    def extra_repr(self) -> str:
        """The grid."""
        return f"scale={self.scale:.6g}, zero_point={self.zero_point}, {self.quant_min}..{self.quant_max}"


class MixedLayer(Rectified):
    """What MixedConv2d and MixedLinear share: int8 weight, float32 scales and bias, the packed weight.

    weight: int8; weight_scale: float32 (out,); bias: float32 (out,) or None;
    input_scale, input_zero_point: the grid of the uint8 tensor that comes in.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        grid: tuple[float, int],
        layer: nn.Module,
    ) -> None:
        super().__init__()
        self.relu, self.ceiling = bool(layer.relu), layer.ceiling  # type: ignore[assignment]
        self.input_scale, self.input_zero_point = grid
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", bias)
        self.register_buffer("weight_zero", torch.zeros(len(weight), dtype=torch.int8), persistent=False)
        self._packed: tuple[tuple[int, ...], Tensor] | None = None

    def packed(self, q: Tensor) -> Tensor:
        """The weight in the kernel's layout: made on first use, and again when height or width change."""
        if self._packed is None or self._packed[0] != tuple(q.shape[1:]):
            self._packed = tuple(q.shape[1:]), self.pack(list(q.shape))
        return self._packed[1]

    def pack(self, shape: list[int]) -> Tensor:
        """Lay the weight out for inputs of this shape."""
        raise NotImplementedError

    def capped(self, y: Tensor) -> Tensor:
        """ReLU is the kernel's last step; the 6 of ReLU6 is left for here."""
        return y if self.ceiling is None else y.clamp_(max=self.ceiling)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles lay the weight out anew."""
        return {**self.__dict__, "_packed": None}

    def extra_repr(self) -> str:
        """Shape of the weight, the input's grid, the ReLU."""
        grid = f"input_scale={self.input_scale:.6g}, input_zero_point={self.input_zero_point}"
        return f"{tuple(self.weight.shape)} int8, {grid}, {super().extra_repr()}"


class MixedConv2d(MixedLayer):
    """relu(scale_x * scale_w * int32 conv(q - zero_point, weight) + bias [+ total]).

    q: uint8 (n, c, h, w) to float32 (n, out, h', w'). The residual addition that ends a block happens in the
    kernel, in float32, over the memory of the other summand. Introduced in notebook 07.
    """

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        grid: tuple[float, int],
        layer: FusedConv2d,
    ) -> None:
        super().__init__(weight, weight_scale, bias, grid, layer)
        padding = [int(side) for side in layer.padding]  # `fuse` has replaced 'same' by numbers
        self.geometry = Geometry(list(layer.stride), padding, list(layer.dilation), layer.groups)

    def pack(self, shape: list[int]) -> Tensor:
        """Lay the weight out for inputs of this shape."""
        return pack_conv(self.weight, self.weight_scale, self.geometry, shape)

    def forward(self, q: Tensor, total: Tensor | None = None) -> Tensor:
        """Convolve integers, add to `total` in its place if there is one; float32 out."""
        grid = (self.input_scale, self.input_zero_point)
        scales = (self.weight_scale, self.weight_zero, self.bias)
        y = int8_conv(q, grid, self.packed(q), *scales, self.geometry, self.relu, total)
        return self.capped(y)


class MixedLinear(MixedLayer):
    """relu(scale_x * scale_w * int32 (q - zero_point) weight^T + bias); q: uint8 (n, in). Notebook 07."""

    def pack(self, shape: list[int]) -> Tensor:
        """Lay the weight out for inputs of this shape."""
        return pack_linear(self.weight, shape)

    def forward(self, q: Tensor) -> Tensor:
        """Multiply integers; float32 out."""
        grid = (self.input_scale, self.input_zero_point)
        scales = (self.weight_scale, self.weight_zero, self.bias)
        return self.capped(int8_linear(q, grid, self.packed(q), *scales, self.relu))


class Mixed(nn.Module):
    """A network that computes in int8 and talks in float32; inference on the CPU only.

    (n, c, h, w) float32 to float32 logits; `sub_batch` images at a time. Introduced in notebook 07.
    """

    def __init__(self, graph: fx.GraphModule, sub_batch: int = SUB_BATCH) -> None:
        super().__init__()
        self.graph_module, self.sub_batch = graph, sub_batch

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of any size."""
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return torch.cat([self.graph_module(part) for part in x.split(self.sub_batch)])


def mixed_layer(
    layer: nn.Module, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, grid: tuple[float, int]
) -> MixedLayer:
    """The int8 layer with the geometry and ReLU of the float `layer`."""
    if isinstance(layer, FusedConv2d):
        return MixedConv2d(weight, weight_scale, bias, grid, layer)
    return MixedLinear(weight, weight_scale, bias, grid, layer)


def replace_layer(
    model: fx.GraphModule,
    node: fx.Node,
    grid: QParams,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
) -> None:
    """Put an int8 layer in the place of a float one, and a Quantize (shared among readers) before it."""
    before: Any = node.args[0]
    name = f"{site_name(before)}_quantize"
    quantizer = next((user for user in before.users if user.target == name), None)
    if quantizer is None:
        model.add_submodule(name, Quantize(grid))
        with model.graph.inserting_after(before):
            quantizer = model.graph.call_module(name, (before,))
    step = model.get_submodule(name)
    assert isinstance(step, Quantize)
    layer = mixed_layer(module_of(node), weight, weight_scale, bias, (step.scale, step.zero_point))
    model.set_submodule(str(node.target), layer)
    node.args = (quantizer,)


def finish(model: fx.GraphModule) -> Mixed:
    """Let the convolution that ends a residual block do the addition too, and wrap the graph."""
    for node in list(model.graph.nodes):
        if kind(node) == "add":
            _add_in_kernel(model, node)
    model.delete_all_unused_submodules()
    model.graph.lint()
    model.recompile()
    return Mixed(model.eval().to(memory_format=torch.channels_last)).eval()


def _add_in_kernel(model: fx.GraphModule, add: fx.Node) -> None:
    """relu(conv(q) + other) becomes conv(q, other), written over `other`, if nobody reads that later."""
    order = {node: position for position, node in enumerate(model.graph.nodes)}
    summands: Any = add.args
    first, second = sorted(summands, key=lambda node: order[node])
    conv, own = module_of(second) if second.op == "call_module" else None, module_of(add)
    readers = [user for user in first.users if user is not add]
    fresh = first.op == "call_module" and isinstance(module_of(first), MixedConv2d)
    if not (fresh and isinstance(conv, MixedConv2d) and len(second.users) == 1 and first is not second):
        return
    if conv.relu or len(second.args) > 1 or any(order[user] > order[second] for user in readers):
        return
    conv.relu, conv.ceiling = own.relu, own.ceiling  # type: ignore[assignment]
    second.args = (second.args[0], first)
    add.replace_all_uses_with(second)
    model.graph.erase_node(add)

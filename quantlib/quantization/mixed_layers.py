"""The int8 operators of a mixed network, and how they are put into its graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from quantlib.quantization.affine import QParams
from quantlib.quantization.fused import FusedConv2d, Rectified
from quantlib.quantization.graph import BATCH_NORMS, kind, module_of
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
    input_grid: scale and zero point of the uint8 tensor that comes in.
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
        self.input_grid = grid
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
        grid = "input scale={:.6g}, zero_point={}".format(*self.input_grid)
        return f"{tuple(self.weight.shape)} int8, {grid}, {super().extra_repr()}"


class MixedConv2d(MixedLayer):
    """relu(scale_x * scale_w * int32 conv(q - zero_point, weight) + bias [+ other]).

    q: uint8 (n, c, h, w) to float32 (n, out, h', w'); `other` is the other summand of a residual block, added
    in float32. A 1x1 convolution is a matrix product over pixels, and that kernel adds on the way out.
    Introduced in notebook 07.
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
        self.geometry = Geometry.of(layer)
        self.is_matmul = weight.shape[2:] == (1, 1) and self.geometry == ([1, 1], [0, 0], [1, 1], 1)

    def pack(self, shape: list[int]) -> Tensor:
        """Lay the weight out for inputs of this shape."""
        if self.is_matmul:
            n, channels, height, width = shape
            return pack_linear(self.weight.flatten(1), [n * height * width, channels])
        return pack_conv(self.weight, self.weight_scale, self.geometry, shape)

    def forward(self, q: Tensor, other: Tensor | None = None) -> Tensor:
        """Convolve integers, add `other` if there is one, rectify; float32 out."""
        if self.is_matmul and (other is None or self._fits(other, q)):
            return self.capped(self._by_matmul(q, other, self.relu))
        args = (
            self.input_grid,
            self.packed(q),
            self.weight_scale,
            self.weight_zero,
            self.bias,
            self.geometry,
        )
        if other is None:
            return self.capped(int8_conv(q, *args, self.relu))
        y = self._by_matmul(q, None, False) if self.is_matmul else int8_conv(q, *args, False)
        y = y.add_(other) if other.shape == y.shape else y + other  # one of the two may be broadcast
        return self.capped(y.relu_() if self.relu else y)

    def _fits(self, other: Tensor, q: Tensor) -> bool:
        """Whether the other summand has the shape of the result."""
        return other.shape == (q.shape[0], self.weight.shape[0], *q.shape[2:])

    def _by_matmul(self, q: Tensor, other: Tensor | None, relu: bool) -> Tensor:
        """One row per pixel: no copy, because channels-last memory is laid out like that."""
        n, _, height, width = q.shape
        rows = None if other is None else pixels(other)
        scales = (self.weight_scale, self.weight_zero, self.bias)
        y = int8_linear(pixels(q), self.input_grid, self.packed(q), *scales, relu, rows)
        return y.view(n, height, width, -1).permute(0, 3, 1, 2)


def pixels(x: Tensor) -> Tensor:
    """(n, c, h, w) as (n*h*w, c). Introduced in notebook 07."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class MixedLinear(MixedLayer):
    """relu(scale_x * scale_w * int32 (q - zero_point) weight^T + bias); q: uint8 (n, in). Notebook 07."""

    def pack(self, shape: list[int]) -> Tensor:
        """Lay the weight out for inputs of this shape."""
        return pack_linear(self.weight, shape)

    def forward(self, q: Tensor) -> Tensor:
        """Multiply integers; float32 out."""
        scales = (self.weight_scale, self.weight_zero, self.bias)
        return self.capped(int8_linear(q, self.input_grid, self.packed(q), *scales, self.relu))


class Mixed(nn.Module):
    """A network that computes in int8 and talks in float32; inference on the CPU only.

    (n, c, h, w) float32 to float32 logits; `sub_batch` images at a time, unless an operator was left in
    float32 that may look at several images at once. Introduced in notebook 07.
    """

    def __init__(self, graph: fx.GraphModule, sub_batch: int = SUB_BATCH) -> None:
        super().__init__()
        self.graph_module, self.sub_batch = graph, sub_batch
        self.splits = all(_treats_images_alone(node) for node in graph.graph.nodes)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of any size."""
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if not self.splits:
            return self.graph_module(x)  # type: ignore[no-any-return]
        return torch.cat([self.graph_module(part) for part in x.split(self.sub_batch)])


def _treats_images_alone(node: fx.Node) -> bool:
    """Whether an operator is known to make of each image what it would make of it alone."""
    if node.op != "call_module":
        return node.op in ("placeholder", "output")
    module = module_of(node)
    if isinstance(module, BATCH_NORMS):
        return module.running_mean is not None
    return bool(kind(node)) or isinstance(module, (Quantize, MixedLayer))


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
            _add_in_layer(model, node)
    model.delete_all_unused_submodules()
    model.graph.lint()
    model.recompile()
    return Mixed(model.eval().to(memory_format=torch.channels_last)).eval()


def _add_in_layer(model: fx.GraphModule, add: fx.Node) -> None:
    """relu(conv(q) + other) becomes conv(q, other), where only the addition reads the convolution."""
    order = {node: position for position, node in enumerate(model.graph.nodes)}
    summands: Any = add.args
    other, last = sorted(summands, key=lambda node: order[node])
    conv, own = module_of(last) if last.op == "call_module" else None, module_of(add)
    if not isinstance(conv, MixedConv2d) or conv.relu or len(last.users) > 1 or len(last.args) > 1:
        return
    if other is last:
        return
    conv.relu, conv.ceiling = own.relu, own.ceiling  # type: ignore[assignment]
    last.args = (last.args[0], other)
    add.replace_all_uses_with(last)
    model.graph.erase_node(add)

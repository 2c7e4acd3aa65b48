"""Quantization-aware training: grids whose scales are learned with the weights (LSQ), batch norm kept alive.

Weights are quantized before their batch norm. That norm multiplies each output channel by one number, so
folding it afterwards moves the channel's scale and leaves its integers alone: what was trained is what runs.
"""

from __future__ import annotations

import copy
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from quantlib.errors import ConfigError, NotCalibratedError
from quantlib.quantization.affine import EPS, quant_range
from quantlib.quantization.observers import make_observer
from quantlib.quantization.tracing import untraceable
from quantlib.subject.modes import answering


class _LearnedRounding(torch.autograd.Function):
    """clamp(rint(x / step), low, high) * step, whose rounding the gradient of x passes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.limits = (low, high)
        return torch.round(x * (1.0 / step)).clamp(low, high) * step

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, step = ctx.saved_tensors
        low, high = ctx.limits
        exact = x * (1.0 / step)
        rounded = torch.round(exact)
        inside = (rounded >= low) & (rounded <= high)
        slope = torch.where(inside, rounded - exact, rounded.clamp(low, high))
        return grads[0] * inside, (grads[0] * slope).sum_to_size(step.shape), None, None


class LearnedGrid(nn.Module):
    """x to clamp(rint(x / scale), quant_min, quant_max) * scale, with a trainable scale; zero point 0.

        d/d scale = rint(x / scale) - x / scale   inside the grid, quant_min or quant_max at its ends
    times 1 / sqrt(values * quant_max), so that a scale moves as slowly as the weights do.

    scale: shape () or, for `channels`, (channels,) along axis 0. `signed` grids are symmetric (narrow range:
    two bits are ternary). Until `start` has seen values the scale is 1, and `learned_grids` refuses it.
    Source: Esser et al. 2020 (LSQ); equal to torch's own learnable fake-quantize kernel.
    Introduced in notebook 15.
    """

    started: Tensor

    def __init__(self, bits: int, signed: bool, channels: int | None = None) -> None:
        super().__init__()
        self.bits, self.signed = bits, signed
        self.quant_min, self.quant_max = quant_range(bits, signed, narrow_range=signed)
        self.scale = nn.Parameter(torch.ones(() if channels is None else (channels,)))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Set the scale to the one of least squared error on `x`."""
        observer = make_observer(
            "mse", bits=self.bits, signed=self.signed, symmetric=self.signed, narrow_range=self.signed,
            axis=0 if self.scale.dim() else None,
        )  # fmt: skip
        observer(x.detach().float())
        # Values that are never negative have zero point 0 on the affine grid too.
        self.scale.copy_(observer.qparams().scale)
        self.started.fill_(True)

    def step(self) -> Tensor:
        """The scale, positive whatever the optimizer did."""
        return self.scale.abs() + EPS

    def forward(self, x: Tensor) -> Tensor:
        """Round to the grid."""
        step = self.step()
        pace = (max(1, step.numel()) / (x.numel() * self.quant_max)) ** 0.5
        step = step.detach() * (1 - pace) + step * pace
        step = step.reshape([-1] + [1] * (x.dim() - 1)) if step.dim() else step
        result: Tensor = _LearnedRounding.apply(x.float(), step, self.quant_min, self.quant_max)
        return result

    def extra_repr(self) -> str:
        """Integers and number of scales."""
        return f"{self.quant_min}..{self.quant_max}, {max(1, self.scale.numel())} scales"


class TrainableConv2d(nn.Conv2d):
    """conv2d(grid(x), grid(weight)); (n, c, h, w). Introduced in notebook 15."""

    input_grid: LearnedGrid
    weight_grid: LearnedGrid

    def forward(self, x: Tensor) -> Tensor:
        """Convolve what lies on the two grids."""
        return self._conv_forward(self.input_grid(x), self.weight_grid(self.weight), self.bias)


class TrainableLinear(nn.Linear):
    """grid(x) grid(weight)^T + bias; (n, features). Introduced in notebook 15."""

    input_grid: LearnedGrid
    weight_grid: LearnedGrid

    def forward(self, x: Tensor) -> Tensor:
        """Multiply what lies on the two grids."""
        return F.linear(self.input_grid(x), self.weight_grid(self.weight), self.bias)


TRAINABLE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: TrainableConv2d,
    nn.Linear: TrainableLinear,
}
"""The layer with learned grids for each ordinary one."""
Trainable: TypeAlias = TrainableConv2d | TrainableLinear
"""A layer with learned grids."""


def inputs_of_layers(model: nn.Module) -> dict[str, str]:
    """For each convolution and linear layer, in order, the name of the traced node that it reads."""
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # torch.fx fails in as many ways as there are models
        raise untraceable(model, error) from error
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "call_module" and type(model.get_submodule(str(node.target))) in TRAINABLE:
            if str(node.target) in found:
                raise ConfigError(f"{node.target!r} is called twice; give each call a layer of its own.")
            found[str(node.target)] = str(node.all_input_nodes[0])
    return found


def make_trainable(model: nn.Module, weight_bits: int, activation_bits: int, ends_bits: int = 8) -> nn.Module:
    """A copy of a float network whose convolutions and linear layers train on learned grids.

    Weights: symmetric, one scale per output channel; inputs of layers: one grid per tensor, shared by the
    layers that read it. The first and the last layer and what they read have `ends_bits`, as is the field's
    custom; residual adds stay in float32 (what `convert(kind="mixed")` runs). Parameters start from the
    model's; call `start_grids` next. Raises ConfigError for bits outside 2..8 or a model without such layers.
    Introduced in notebook 15.
    """
    reads = inputs_of_layers(model)
    if not reads:
        raise ConfigError(
            "This model has no convolution and no linear layer to train on a grid; pass the model itself, not"
            " its fused graph."
        )
    model, names = copy.deepcopy(model), list(reads)
    wide = {reads[names[0]], reads[names[-1]]}  # by other layers too, which may come before
    grids: dict[str, LearnedGrid] = {}
    for name in names:
        ends = name in (names[0], names[-1])
        layer = cast(Trainable, model.get_submodule(name))
        bits = ends_bits if reads[name] in wide else activation_bits
        grid = grids.setdefault(reads[name], LearnedGrid(bits, signed=name == names[0]))
        layer.__class__ = TRAINABLE[type(layer)]  # type: ignore[assignment]
        layer.weight_grid = LearnedGrid(ends_bits if ends else weight_bits, True, layer.weight.shape[0])
        layer.input_grid = grid
    return model


def trainable_layers(model: nn.Module) -> dict[str, Trainable]:
    """The layers with learned grids, by name. Introduced in notebook 15."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Trainable)}


@torch.no_grad()
def start_grids(model: nn.Module, images: Tensor) -> nn.Module:
    """Give every grid its first scale: weights from themselves, inputs from one forward pass of `images`.

    images: (n, 3, h, w), from the training set. The model is put into eval mode for the pass, and each grid
    starts on what the low-bit layers before it make; one that was started before starts anew. Returns the
    model. Raises ConfigError where values below zero meet an unsigned grid. Introduced in notebook 15.
    """
    handles = []

    def first(layer: Any, args: tuple[Tensor, ...]) -> None:
        if not layer.input_grid.started:
            if not layer.input_grid.signed and bool((args[0] < 0).any()):
                raise ConfigError(
                    "A layer other than the first reads negative values; put a ReLU before each."
                )
            layer.input_grid.start(args[0])

    for layer in trainable_layers(model).values():
        layer.weight_grid.start(layer.weight)
        layer.input_grid.started.fill_(False)
        handles.append(layer.register_forward_pre_hook(first))
    try:
        with answering(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return model


def plain(model: nn.Module) -> nn.Module:
    """A copy without grids: ordinary layers whose weights lie where the grids put them.

    Raises NotCalibratedError before `start_grids`. Introduced in notebook 15.
    """
    model = copy.deepcopy(model)
    back = {new: old for old, new in TRAINABLE.items()}
    for name, layer in trainable_layers(model).items():
        if not bool(layer.weight_grid.started):
            raise NotCalibratedError(f"The grids of {name!r} have no scale yet; call start_grids first.")
        with torch.no_grad():
            layer.weight.copy_(layer.weight_grid(layer.weight))
        del layer.weight_grid, layer.input_grid
        layer.__class__ = back[type(layer)]  # type: ignore[assignment]
    return model

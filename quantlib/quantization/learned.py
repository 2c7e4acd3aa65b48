"""From learned grids to a network that `convert` turns into integers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantlib.errors import ConfigError
from quantlib.quantization.affine import QParams
from quantlib.quantization.canonical import module_of
from quantlib.quantization.observers.fixed import FixedObserver
from quantlib.quantization.qat import LearnedGrid, plain, trainable_layers
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.sites import has_weight, site_name, source
from quantlib.quantization.workflow import Prepared, prepare

MIDDLE = 128
"""The zero point that a signed 8-bit input gets on the kernels' unsigned grid."""


def learned_grids(model: nn.Module) -> Prepared:
    """A trained network of `make_trainable`, folded, with its grids in the places of the observers.

    A batch norm multiplies output channel c by some f: the channel's scale becomes scale |f|, its integers at
    most change sign, which a symmetric narrow range allows. Give the result to `convert(kind="mixed")`: adds
    stay in float32, as they were in training; the other kinds would round tensors that have no grid.
    Raises NotCalibratedError before `start_grids`, ConfigError where two layers learned two grids for one
    tensor. Introduced in notebook 15.
    """
    float_model = plain(model).eval()
    prepared = prepare(float_model, QConfig(activation=Scheme()))
    layers, places = trainable_layers(model), dict[str, LearnedGrid]()
    for node in prepared.graph.nodes:
        if not has_weight(node):
            continue
        name = str(node.target)
        layer = layers[name]
        before = float_model.get_submodule(name).weight.detach()  # type: ignore[union-attr,operator]
        factor = channel_factors(before, module_of(node).weight.detach())  # type: ignore[operator]
        like = Scheme(layer.weight_grid.bits, symmetric=True, per_channel=True, narrow_range=True)
        prepared.weights[name] = FixedObserver(
            _grid(layer.weight_grid, factor.abs()), like.observer_instance(axis=0)
        )
        place = site_name(source(node.args[0]))  # type: ignore[arg-type]
        found = _input_grid(layer.input_grid)
        if places.setdefault(place, layer.input_grid) is not layer.input_grid:
            raise ConfigError(
                f"{name!r} has learned a grid of its own for {place!r}, which another layer reads by another "
                "grid; integer kernels have one for each tensor."
            )
        prepared.set_observer(place, FixedObserver(found, Scheme(found.bits).observer_instance()))
    return prepared


def channel_factors(before: Tensor, after: Tensor) -> Tensor:
    """What folding multiplied each output channel of a weight by; 1 where the channel is all zero."""
    old, new = before.flatten(1).double(), after.flatten(1).double()
    energy = old.square().sum(1)
    factors = (old * new).sum(1) / energy
    return torch.where(energy > 0, factors, torch.ones_like(factors)).float()


def _grid(grid: LearnedGrid, factor: Tensor) -> QParams:
    scale = (grid.step().detach() * factor).clamp(min=torch.finfo(torch.float32).tiny)
    return QParams(scale, torch.zeros_like(scale, dtype=torch.int32), grid.quant_min, grid.quant_max, axis=0)


def _input_grid(grid: LearnedGrid) -> QParams:
    """The unsigned grid of the kernels; a signed one is moved to the middle."""
    shift = MIDDLE if grid.signed else 0
    return QParams(grid.step().detach(), torch.tensor(shift), grid.quant_min + shift, grid.quant_max + shift)

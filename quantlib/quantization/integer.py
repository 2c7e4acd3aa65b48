"""Pure int8: from a calibrated network to one that computes in integers between first and last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from quantlib.errors import ConfigError
from quantlib.quantization.affine import QParams, quantize
from quantlib.quantization.fused import Flatten
from quantlib.quantization.graph import kind, module_of
from quantlib.quantization.integer_elementwise import IntegerAdd, IntegerConcat, IntegerReLU
from quantlib.quantization.integer_graph import LAST, Integer, Step, arguments, assemble
from quantlib.quantization.integer_layers import (
    Dequantize,
    Grid,
    IntegerConv2d,
    IntegerLayer,
    IntegerLinear,
    IntegerOperator,
)
from quantlib.quantization.integer_pooling import (
    IntegerAdaptiveAvgPool2d,
    IntegerAverage,
    IntegerAvgPool2d,
    IntegerMaxPool2d,
)
from quantlib.quantization.kernels import Geometry
from quantlib.quantization.mixed import weight_grid
from quantlib.quantization.mixed_layers import Quantize
from quantlib.quantization.qconfig import check_name
from quantlib.quantization.requantize import ROUNDINGS
from quantlib.quantization.sites import SHARING, readers, site_name, source
from quantlib.quantization.workflow import Prepared

FRACTION_BITS = 12
"""Bits behind the point that the mean of accumulators gets where there is room."""


def to_integer(prepared: Prepared, rounding: str = "float") -> Integer:
    """The calibrated network in integers, as exact reference.

    `rounding`: how accumulators become 8 bits, one of ROUNDINGS. Raises ConfigError, naming the layer, for
    an operator left in float32, weights with a zero point, per-channel activations, or a tensor without a
    grid. Introduced in notebook 08.
    """
    check_name(rounding, ROUNDINGS, "rounding")
    nodes = list(prepared.graph.nodes)
    steps = [_first(prepared, next(node for node in nodes if node.op == "placeholder"))]
    for node in nodes:
        if node.op in ("placeholder", "output"):
            continue
        if not kind(node):
            raise ConfigError(
                f"{site_name(node)!r} is left in float32, and kind='integer' has no place for floats; "
                "replace that operator, or use kind='mixed'."
            )
        builder = BUILDERS[kind(node)]
        steps.append(
            Step(site_name(node), builder(prepared, node, rounding), [site_name(n) for n in arguments(node)])
        )
    last = next(node for node in nodes if node.op == "output").args[0]
    steps.append(Step(LAST, _last(prepared, last, dict(s[:2] for s in steps)), [site_name(last)]))
    return assemble(steps, rounding)


def _first(prepared: Prepared, node: fx.Node) -> Step:
    return Step("input", Quantize(_needed(prepared, node).qparams), [""])


def _grid(prepared: Prepared, node: fx.Node) -> Grid | None:
    """The grid of what a node puts out; None for the accumulators of the network's result."""
    name = site_name(source(node))
    if name in prepared.activations:
        return Grid.of(prepared.tensor_grid(name))
    if all(reader.op == "output" for reader in readers(source(node))):
        return None
    raise ConfigError(f"Activation {name!r} has a scheme of None; kind='integer' needs a Scheme for each.")


def _needed(prepared: Prepared, node: fx.Node) -> Grid:
    """The grid of a tensor that cannot be accumulators."""
    grid = _grid(prepared, node)
    if grid is None:
        raise ConfigError(
            f"The network's result comes from {site_name(source(node))!r}, which needs a grid to be integer; "
            "pass QConfig(quantize_output=True)."
        )
    return grid


def _layer(prepared: Prepared, node: fx.Node, rounding: str) -> IntegerLayer:
    name, layer = site_name(node), module_of(node)
    inputs = _needed(prepared, arguments(node)[0])
    common: dict[str, Any] = {
        "name": name,
        "input_grid": inputs,
        "output_grid": _grid(prepared, node),
        "relu": layer.relu,
        "ceiling": layer.ceiling,
        "rounding": rounding,
    }
    tensors = integer_weight(prepared, name, layer, inputs.scale)
    if kind(node) == "linear":
        return IntegerLinear(*tensors, **common)
    return IntegerConv2d(*tensors, geometry=Geometry.of(layer), **common)  # type: ignore[arg-type]


def integer_weight(
    prepared: Prepared, name: str, layer: nn.Module, input_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """int8 weight, int32 bias = rint(b / (s_in * s_w)), and s_w, float32 (out,).

    Where a channel's weights are so small beside its bias that this would not fit, s_w grows until the bias
    is 2**30: what the weights lose is far below what the output can show. As in TFLite's converter.
    """
    if name not in prepared.weights:
        raise ConfigError(
            f"Weights of {name!r} are left in float32; kind='integer' needs a Scheme for every layer."
        )
    grid = weight_grid(name, prepared.weights[name], "integer")
    weight: Tensor = layer.weight.detach()  # type: ignore[operator, assignment]
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()  # type: ignore
    scale = torch.maximum(grid.scale.expand(len(weight)), bias.abs() / (input_scale * 2**30))
    grid = QParams(scale, torch.zeros(len(weight)), grid.quant_min, grid.quant_max, axis=0)
    whole = torch.round(bias.double() / (input_scale * scale).double()).to(torch.int32)
    return quantize(weight, grid).contiguous(), whole, scale.contiguous()


def _add(prepared: Prepared, node: fx.Node, rounding: str) -> IntegerOperator:
    module: Any = module_of(node)
    return IntegerAdd(
        input_grids=[_needed(prepared, each) for each in arguments(node)],
        output_grid=_needed(prepared, node),
        relu=module.relu,
        ceiling=module.ceiling,
        rounding=rounding,
    )


def _relu(prepared: Prepared, node: fx.Node, rounding: str) -> IntegerOperator:
    return IntegerReLU(
        input_grid=_needed(prepared, arguments(node)[0]),
        output_grid=_needed(prepared, node),
        ceiling=6.0 if isinstance(module_of(node), nn.ReLU6) else None,
        rounding=rounding,
    )


def _concat(prepared: Prepared, node: fx.Node, rounding: str) -> IntegerOperator:
    return IntegerConcat(
        input_grids=[_needed(prepared, each) for each in arguments(node)],
        output_grid=_needed(prepared, node),
        dim=module_of(node).dim,  # type: ignore[arg-type]
        rounding=rounding,
    )


def _pool(prepared: Prepared, node: fx.Node, rounding: str) -> IntegerOperator:
    pool, grid = module_of(node), _grid(prepared, node)
    if isinstance(pool, nn.MaxPool2d):
        return IntegerMaxPool2d(output_grid=grid, **_alike(IntegerMaxPool2d, pool))
    if isinstance(pool, nn.AvgPool2d):
        return IntegerAvgPool2d(output_grid=grid, rounding=rounding, **_alike(IntegerAvgPool2d, pool))
    assert isinstance(pool, nn.AdaptiveAvgPool2d)
    return IntegerAdaptiveAvgPool2d(output_grid=grid, output_size=pool.output_size, rounding=rounding)


def _alike(operator: type[IntegerOperator], pool: nn.Module) -> dict[str, Any]:
    """The settings that the integer pooling shares with torch's."""
    return {name: getattr(pool, name) for name in operator.settings if hasattr(pool, name)}


def _last(prepared: Prepared, node: fx.Node, modules: dict[str, nn.Module]) -> Dequantize:
    """From the result's grid, or from the accumulators of the layer that it comes from."""
    grid = _grid(prepared, node)
    if grid is not None:
        return Dequantize(torch.tensor(grid.scale), zero_point=grid.zero_point)
    averages = []
    while kind(node) in SHARING:
        if isinstance(average := modules[site_name(node)], IntegerAverage):
            averages.append(average)
        node = arguments(node)[0]
    layer = modules[site_name(node)]
    assert isinstance(layer, IntegerLayer)
    bits = 0
    if averages and getattr(averages[-1], "divisor_override", None) is None:
        # The first mean gets as many more bits as 32 have room for.
        bits = max(0, min(FRACTION_BITS, 30 - layer.accumulator_bound().bit_length()))
        averages[-1].fraction_bits = bits
    return Dequantize(layer.input_grid.scale * layer.weight_scale / 2**bits)


BUILDERS: dict[str, Callable[[Prepared, fx.Node, str], nn.Module]] = {
    "conv": _layer,
    "linear": _layer,
    "add": _add,
    "relu": _relu,
    "concat": _concat,
    "pool": _pool,
    "flatten": lambda prepared, node, rounding: Flatten(),
}
"""How each kind of node becomes its integer module."""

__all__ = ["Integer", "to_integer"]

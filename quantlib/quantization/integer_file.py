"""An integer network as one file that describes itself: loading needs no Python class of the model."""

from __future__ import annotations

import keyword
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from quantlib.errors import ConfigError
from quantlib.quantization import quantized_file
from quantlib.quantization.fused import Flatten
from quantlib.quantization.integer_elementwise import IntegerAdd, IntegerConcat, IntegerReLU
from quantlib.quantization.integer_graph import Integer, Step, assemble
from quantlib.quantization.integer_layers import (
    Dequantize,
    Grid,
    IntegerConv2d,
    IntegerLinear,
    IntegerOperator,
)
from quantlib.quantization.integer_pooling import IntegerAdaptiveAvgPool2d, IntegerAvgPool2d, IntegerMaxPool2d
from quantlib.quantization.mixed_layers import Quantize
from quantlib.quantization.qconfig import check_name
from quantlib.quantization.requantize import ROUNDINGS

KIND, VERSION = "integer", 1
"""What the file says of itself."""
CLASSES: tuple[type[IntegerOperator], ...] = (
    IntegerConv2d, IntegerLinear, IntegerAdd, IntegerReLU, IntegerConcat, IntegerMaxPool2d,
    IntegerAvgPool2d, IntegerAdaptiveAvgPool2d, Dequantize,
)  # fmt: skip
"""The integer operators."""
OPERATORS = {each.__name__: each for each in CLASSES}
"""The operators that a file can name, besides Quantize and Flatten."""


def reference_of(model: nn.Module) -> Integer:
    """The exact network that a file holds: an Integer itself, or the reference of an engine."""
    found = getattr(model, "reference", model)
    if not isinstance(found, Integer):
        raise ConfigError("Only what convert(..., kind='integer') returned can be written to this file.")
    return found


def save_integer(model: nn.Module, path: str | Path) -> None:
    """Write an integer network to one file: int8 weights, int32 biases, float32 scales, and the graph.

    The graph is a list of operators with name, inputs and settings, in the metadata key "quantlib".
    Of an engine, its reference is written. Raises ConfigError for any other network. Written aside, then
    renamed. Introduced in notebook 08.
    """
    model = reference_of(model)
    quantized_file.write(path, KIND, VERSION, dict(model.graph_module.state_dict()), describe(model))


def describe(model: Integer) -> dict[str, Any]:
    """What JSON can hold of an integer network: its rounding, and every operator with inputs and settings."""
    steps = [
        {
            "name": name,
            "operator": type(module).__name__,
            "inputs": inputs,
            "settings": _settings(module),
        }
        for name, module, inputs in model.steps
    ]
    return {"rounding": model.rounding, "steps": steps}


def load_integer(path: str | Path) -> Integer:
    """The network that `save_integer` wrote, bit for bit, as exact reference.

    Raises CheckpointError when the file is missing, damaged, of another version, or names an operator that
    does not exist. Introduced in notebook 08.
    """
    return rebuild(path, *quantized_file.read(path, KIND, VERSION))


def rebuild(path: str | Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> Integer:
    """The network of these tensors and of a description by `describe`; CheckpointError when there is none."""
    with quantized_file.sense_of(path):
        check_name(description["rounding"], ROUNDINGS, "rounding")
        steps = [_step(step, tensors) for step in description["steps"]]
        if not steps:
            raise KeyError("steps")
        return assemble(steps, description["rounding"])


def _settings(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, Quantize):
        return {"output_grid": (module.scale, module.zero_point, module.quant_min, module.quant_max)}
    return module.description() if isinstance(module, IntegerOperator) else {}


def _step(step: dict[str, Any], tensors: dict[str, Tensor]) -> Step:
    """One operator, from its description and the tensors that bear its name."""
    name, operator = step["name"], step["operator"]
    if not _can_be_a_layer(name):
        raise ValueError(f"no layer is called {name!r}")  # torch.fx writes names into Python source
    settings = {key: _setting(key, value) for key, value in step["settings"].items()}
    own = {key.rpartition(".")[2]: value for key, value in _named(tensors, name)}
    module: nn.Module
    if operator == "Quantize":
        module = Quantize(settings["output_grid"].qparams)
    elif operator == "Flatten":
        module = Flatten()
    else:
        module = OPERATORS[operator](**own, **settings)
    return Step(name, module, step["inputs"])


def _can_be_a_layer(name: str) -> bool:
    """Whether a graph may call a layer so: no quotes, no word of Python, nothing that a module has itself."""
    first, *rest = name.split(".")
    own = hasattr(fx.GraphModule, first) or any(hasattr(nn.Module, part) for part in rest)
    readable = all(character not in "\"\\" and character.isprintable() for character in name)
    return readable and not own and not any(keyword.iskeyword(part) for part in (first, *rest))


def _named(tensors: dict[str, Tensor], name: str) -> Iterable[tuple[str, Tensor]]:
    return ((key, value) for key, value in tensors.items() if key.rpartition(".")[0] == name)


def _setting(key: str, value: Any) -> Any:
    """A float32 scale survives JSON as the float64 that equals it."""
    if key == "input_grids":
        return [_grid(*each) for each in value]
    if key.endswith("_grid") and value is not None:
        return _grid(*value)
    return tuple(value) if isinstance(value, list) else value


def _grid(scale: float, zero_point: int, quant_min: int, quant_max: int) -> Grid:
    """A grid from a file; ValueError for one that no kernel could take."""
    whole = all(isinstance(each, int) for each in (zero_point, quant_min, quant_max))
    if not (whole and 0 < scale < math.inf and -(2**31) <= quant_min <= zero_point <= quant_max < 2**31):
        raise ValueError(f"{[scale, zero_point, quant_min, quant_max]} is no grid")
    return Grid(scale, zero_point, quant_min, quant_max)

"""What writes an ONNX graph: operators and constants, collected one by one."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor

from quantlib.errors import ConfigError
from quantlib.quantization.integer_layers import Grid


def optional(name: str) -> Any:
    """The module `name` of a package that quantlib can do without; ConfigError where it is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"The engine 'onnxruntime' needs {name.split('.')[0]}, which is not installed: "
            "pip install onnx onnxruntime, or use engine='reference'."
        ) from error


class Writer:
    """Collects operators and constants; `samples`: the integers of one image, by name, for their shapes."""

    def __init__(self, samples: dict[str, Tensor]) -> None:
        self.samples = samples
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: type | None = None) -> str:
        """Keep a constant and name it."""
        name = f"constant_{len(self.constants)}"
        array = value.numpy() if isinstance(value, Tensor) else np.array(value, dtype)
        self.constants.append(optional("onnx.numpy_helper").from_array(array, name))
        return name

    def grid(self, grid: Grid) -> list[str]:
        """Names of a grid's scale and zero point."""
        return [self.constant(grid.scale, np.float32), self.constant(grid.zero_point, np.uint8)]

    def node(self, operator: str, inputs: Sequence[str], out: str = "", **attributes: Any) -> str:
        """Add an operator; the name of what it puts out."""
        out = out or f"between_{len(self.nodes)}"
        self.nodes.append(optional("onnx.helper").make_node(operator, list(inputs), [out], **attributes))
        return out

    def clipped(
        self, operator: str, inputs: Sequence[str], out: str, limits: tuple[int, int], **attributes: Any
    ) -> None:
        """Add an operator whose result is uint8 within limits."""
        if limits == (0, 255):
            self.node(operator, inputs, out, **attributes)
        else:
            bounds = [self.constant(limit, np.uint8) for limit in limits]
            self.node("Clip", [self.node(operator, inputs, **attributes), *bounds], out)

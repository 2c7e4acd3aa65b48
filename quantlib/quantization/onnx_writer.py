"""What writes an ONNX graph: operators and constants, collected one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from quantlib.optional import optional
from quantlib.quantization.integer_layers import Grid


def onnx_package(name: str) -> Any:
    """A module of onnx or of onnxruntime; ConfigError where the package is missing."""
    return optional(
        name, "Reading or writing ONNX", "pip install onnx onnxruntime (engine='reference' runs without)"
    )


class Writer:
    """Collects operators and constants; `samples`: the integers of one image, by name, for their shapes."""

    def __init__(self, samples: dict[str, Tensor]) -> None:
        self.samples, self.step = samples, ""
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def alias(self, name: str, other: str) -> None:
        """Let the tensor `other` be of the shape and grid of `name`."""
        self.samples[other] = self.samples[name]

    def constant(self, value: Any, dtype: type | None = None) -> str:
        """Keep a constant and name it."""
        name = f"constant_{len(self.constants)}"
        array = value.numpy() if isinstance(value, Tensor) else np.array(value, dtype)
        self.constants.append(onnx_package("onnx.numpy_helper").from_array(array, name))
        return name

    def grid(self, grid: Grid) -> list[str]:
        """Names of a grid's scale and zero point."""
        return [self.constant(grid.scale, np.float32), self.constant(grid.zero_point, np.uint8)]

    def node(self, operator: str, inputs: Sequence[str], out: str = "", **attributes: Any) -> str:
        """Add an operator, named after the step; the name of what it puts out."""
        name = f"{self.step}/{operator}_{len(self.nodes)}"
        make = onnx_package("onnx.helper").make_node
        self.nodes.append(make(operator, list(inputs), [out or name], name=name, **attributes))
        return out or name

    def clipped(
        self, operator: str, inputs: Sequence[str], out: str, limits: tuple[int, int], **attributes: Any
    ) -> None:
        """Add an operator whose result is uint8 within limits."""
        if limits == (0, 255):
            self.node(operator, inputs, out, **attributes)
        else:
            bounds = [self.constant(limit, np.uint8) for limit in limits]
            self.node("Clip", [self.node(operator, inputs, **attributes), *bounds], out)

"""The operators of the canonical graph: every one a module, with its ReLU inside."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantlib.errors import UnsupportedOperatorError

M = TypeVar("M", bound=nn.Module)


def rectify(x: Tensor, relu: bool, ceiling: float | None = None) -> Tensor:
    """max(x, 0), and no more than `ceiling` when there is one (ReLU6); x itself without `relu`.

    In place: the operators hand over what they have just made, and a second tensor of that size costs more
    time than the ReLU.
    """
    if not relu:
        return x
    return F.relu_(x) if ceiling is None else x.clamp_(0.0, ceiling)


class Rectified(nn.Module):
    """Mixin: an operator that ends in an optional ReLU, or ReLU6 when `ceiling` is 6."""

    relu: bool = False
    ceiling: float | None = None

    def rectified(self, x: Tensor) -> Tensor:
        """Apply the fused ReLU, if any."""
        return rectify(x, self.relu, self.ceiling)

    def extra_repr(self) -> str:
        """The operator's own settings, then the ReLU."""
        activation = "none" if not self.relu else "relu" if self.ceiling is None else f"relu{self.ceiling:g}"
        own = super().extra_repr()
        return f"{own}, activation={activation}" if own else f"activation={activation}"


class FusedConv2d(Rectified, nn.Conv2d):
    """relu(conv2d(x) + bias): batch norm already folded in. (n, c, h, w) float32. Notebook 06."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, then rectify."""
        return self.rectified(super().forward(x))


class FusedLinear(Rectified, nn.Linear):
    """relu(x W^T + bias); (n, features) float32. Notebook 06.

    rows_only: a batch norm is folded in, which means another axis of (n, places, features).
    """

    rows_only: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, then rectify."""
        if self.rows_only and x.dim() != 2:
            raise UnsupportedOperatorError(
                "A batch norm behind a linear layer is quantized for inputs (n, features) only."
            )
        return self.rectified(super().forward(x))


class FusedAdd(Rectified):
    """relu(a + b): the end of a residual block. Notebook 06."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Add, then rectify."""
        return self.rectified(a + b)


class Concat(nn.Module):
    """Join tensors along `dim`: the end of a fire or inception module."""

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *tensors: Tensor) -> Tensor:
        """Concatenate; UnsupportedOperatorError along the batch, of which engines see a part at a time."""
        if self.dim % tensors[0].dim() == 0:
            raise UnsupportedOperatorError("Tensors are joined along the batch; join them along channels.")
        return torch.cat(tensors, self.dim)


class Flatten(nn.Flatten):
    """(n, c, h, w) to (n, c*h*w)."""


def fused_conv(conv: nn.Conv2d) -> FusedConv2d:
    """The same convolution as a FusedConv2d, sharing its parameters."""
    return adopt(FusedConv2d.__new__(FusedConv2d), conv)


def fused_linear(linear: nn.Linear) -> FusedLinear:
    """The same linear layer as a FusedLinear, sharing its parameters."""
    return adopt(FusedLinear.__new__(FusedLinear), linear)


def shared_copy(layer: M) -> M:
    """Another object for the same layer: its parameters are shared, its ReLU is its own."""
    return adopt(layer.__class__.__new__(layer.__class__), layer)


def adopt(new: M, old: nn.Module) -> M:
    """Give `new` everything that `old` holds: cheaper than a second random initialization."""
    new.__dict__.update(old.__dict__)
    new._parameters = dict(old._parameters)
    return new

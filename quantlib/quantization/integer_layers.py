"""The exact integer operators that hold weights: convolution and linear layer, uint8 in and out.

acc = sum (q - zero_in) * w + bias in int32, then one requantization per output channel. The product is
opened once, before any image comes: sum q*w - zero_in * sum w, where the second term and the bias are one
number per channel, `offset`. Borders are padded with zero_in, so that this holds there too.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from quantlib.errors import ConfigError
from quantlib.quantization.affine import QParams
from quantlib.quantization.integer_matmul import columns, exact_matmul, int_matmul
from quantlib.quantization.kernels import Geometry, as_uint8
from quantlib.quantization.requantize import along, float_multiplier, requantize


class Grid(NamedTuple):
    """The grid of one uint8 tensor, as plain numbers: x = (q - zero_point) * scale. Notebook 08."""

    scale: float
    zero_point: int
    quant_min: int
    quant_max: int

    @classmethod
    def of(cls, qparams: QParams) -> Grid:
        """The grid on unsigned integers; a signed one is shifted up by -quant_min."""
        grid = as_uint8(qparams)
        return cls(float(grid.scale), int(grid.zero_point), grid.quant_min, grid.quant_max)

    @property
    def qparams(self) -> QParams:
        """The same grid as tensors; a float32 scale survives the way through float64."""
        scale, zero_point = torch.tensor(self.scale), torch.tensor(self.zero_point)
        return QParams(scale, zero_point, self.quant_min, self.quant_max)

    def limits(self, relu: bool, ceiling: float | None) -> tuple[int, int]:
        """Lowest and highest integer after a ReLU, or a ReLU6 when `ceiling` is 6: zero is zero_point."""
        low = max(self.quant_min, self.zero_point) if relu else self.quant_min
        if not relu or ceiling is None:
            return low, self.quant_max
        top = torch.round(torch.tensor(ceiling) * (1.0 / torch.tensor(self.scale)))
        return low, min(self.quant_max, self.zero_point + int(top))


class IntegerOperator(nn.Module):
    """An operator on integers. `settings`: the attributes that, with the buffers, make it anew."""

    settings: ClassVar[tuple[str, ...]]

    def description(self) -> dict[str, Any]:
        """Its settings, by name; what `save_integer` writes."""
        return {name: getattr(self, name) for name in self.settings}

    def extra_repr(self) -> str:
        """Every setting."""
        return ", ".join(f"{name}={value}" for name, value in self.description().items())


class IntegerLayer(IntegerOperator):
    """What IntegerConv2d and IntegerLinear share.

    Buffers: weight int8 (out, ...), bias int32 (out,) in units of s_in * s_w[c], weight_scale float32 (out,);
    made from them: multiplier float32 (out,), None without output_grid; weight_sum int32 (out,);
    offset int32 (out,) = bias - zero_in * weight_sum.
    Attributes: name (for messages), input_grid, output_grid (None: the result stays int32), relu, ceiling,
    rounding; low, high: the clamp. Introduced in notebook 08.
    """

    settings: ClassVar[tuple[str, ...]] = (
        "name", "input_grid", "output_grid", "relu", "ceiling", "rounding",
    )  # fmt: skip
    weight: Tensor
    bias: Tensor
    weight_scale: Tensor
    multiplier: Tensor | None
    weight_sum: Tensor
    offset: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor, weight_scale: Tensor, *, name: str, input_grid: Grid,
        output_grid: Grid | None, relu: bool = False, ceiling: float | None = None, rounding: str = "float",
    ) -> None:  # fmt: skip
        super().__init__()
        if weight.dtype != torch.int8 or bias.dtype != torch.int32 or len(bias) != len(weight):
            raise TypeError(f"{name!r} needs int8 weights and one int32 bias for each output channel")
        self.name, self.input_grid, self.output_grid = name, input_grid, output_grid
        self.relu, self.ceiling, self.rounding = relu, ceiling, rounding
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("weight_scale", weight_scale)
        sums = weight.flatten(1).sum(1, dtype=torch.int32)
        multiplier = None
        if output_grid is not None:
            self.low, self.high = output_grid.limits(relu, ceiling)
            multiplier = float_multiplier(input_grid.scale, weight_scale, output_grid.scale)
        self.register_buffer("multiplier", multiplier, persistent=False)
        self.register_buffer("weight_sum", sums, persistent=False)
        self.register_buffer("offset", bias - input_grid.zero_point * sums, persistent=False)
        self.fits = self.accumulator_bound() < 2**31

    def accumulator_bound(self) -> int:
        """No accumulator can be larger: max over channels of sum|w| * max|q - zero_in| + |bias|."""
        zero, low, high = self.input_grid.zero_point, self.input_grid.quant_min, self.input_grid.quant_max
        sums = self.weight.flatten(1).long().abs().sum(1)
        return int((sums * max(zero - low, high - zero) + self.bias.long().abs()).max())

    def rows(self, q: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """The input as int8 rows (groups, n, k), the weight as (groups, k, out), the output's shape."""
        raise NotImplementedError

    def accumulate(self, q: Tensor) -> Tensor:
        """sum (q - zero_in) * weight + bias, exact, int32, (n, out, ...).

        The kernel multiplies int8 by int8, so q - 128 goes in, and 128 * weight_sum is added with `offset`.
        Raises ConfigError, naming the layer, for images of other channels or smaller than the kernel, and
        when an accumulator does not fit into 32 bits; that is looked for only where `accumulator_bound`
        allows it.
        """
        self._check_input(q)
        rows, weight, shape = self.rows(q)
        if not self.fits:
            self._check(rows, weight)
        acc = int_matmul(rows, weight).add_(self.offset + 128 * self.weight_sum)
        return acc.view(*shape).movedim(-1, 1)

    @property
    def channels(self) -> int:
        """How many channels its input has."""
        return self.weight.shape[1]

    def _check_input(self, q: Tensor) -> None:
        if q.dim() != self.weight.dim() or q.shape[1] != self.channels:
            shape = f"(n, {self.channels}{', h, w' * (self.weight.dim() == 4)})"
            raise ConfigError(f"Layer {self.name!r} reads {shape}, not {tuple(q.shape)}; pass such a batch.")

    def _check(self, rows: Tensor, weight: Tensor) -> None:
        """Whether float64, which holds every sum exactly, needs more than 32 bits."""
        offset = self.bias.double() + (128 - self.input_grid.zero_point) * self.weight_sum.double()
        largest = (exact_matmul(rows, weight) + offset).abs().max().item()
        if largest >= 2**31:
            raise ConfigError(
                f"Layer {self.name!r} needs an accumulator of {largest:.0f}, more than 32 bits hold; "
                "give its weights or its input fewer bits."
            )

    def forward(self, q: Tensor) -> Tensor:
        """Accumulate, then requantize to uint8; int32 accumulators when there is no output_grid."""
        acc = self.accumulate(q)
        if self.output_grid is None:
            return self._rectified(acc)
        assert self.multiplier is not None
        return requantize(
            acc, self.multiplier, self.output_grid.zero_point, self.low, self.high, self.rounding
        )

    @property
    def top(self) -> Tensor | None:
        """The accumulators that mean `ceiling`, int32 (out,); None without one."""
        if not self.relu or self.ceiling is None:
            return None
        top = torch.round(self.ceiling / (self.input_grid.scale * self.weight_scale)).double()
        return top.clamp(max=2**31 - 1).to(torch.int32)  # a filter of zeros has a tiny scale

    def _rectified(self, acc: Tensor) -> Tensor:
        if not self.relu:
            return acc
        top, acc = self.top, acc.clamp_(min=0)
        return acc if top is None else torch.minimum(acc, along(top, acc))


class IntegerConv2d(IntegerLayer):
    """requantize(sum (q - zero_in) * weight + bias): (n, c, h, w) uint8 to (n, out, h', w') uint8.

    weight: int8 (out, c/groups, kh, kw); geometry: stride, padding, dilation, groups. Notebook 08.
    """

    settings = (*IntegerLayer.settings, "geometry")

    def __init__(
        self, weight: Tensor, bias: Tensor, weight_scale: Tensor, *, geometry: Geometry, **common: Any
    ) -> None:
        super().__init__(weight, bias, weight_scale, **common)
        self.geometry = Geometry(*geometry)

    @property
    def channels(self) -> int:
        """How many channels its input has, of all groups."""
        return self.weight.shape[1] * self.geometry.groups

    def rows(self, q: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """One row per output pixel; the border holds the integer that means 0.0."""
        out, inputs, *kernel = self.weight.shape
        groups = self.geometry.groups
        windows, size = columns(q, list(kernel), self.geometry, self.input_grid.zero_point)
        weight = self.weight.permute(0, 2, 3, 1).reshape(groups, out // groups, -1)
        return windows, weight.transpose(1, 2), [len(q), *size, out]


class IntegerLinear(IntegerLayer):
    """requantize((q - zero_in) weight^T + bias): (n, in) uint8 to (n, out) uint8, or int32 at the end.

    weight: int8 (out, in). Notebook 08.
    """

    def rows(self, q: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """One row per image."""
        return (q ^ 128).view(torch.int8)[None], self.weight.t()[None], [len(q), len(self.weight)]


class Dequantize(IntegerOperator):
    """The last step: (q - zero_point) * scale as float32, with scale () or one per channel on axis 1.

    After a flattening, the values of one channel lie side by side and share its scale. Notebook 08.
    """

    settings = ("zero_point",)
    scale: Tensor

    def __init__(self, scale: Tensor, *, zero_point: int = 0) -> None:
        super().__init__()
        self.zero_point = zero_point
        self.register_buffer("scale", scale)

    def forward(self, q: Tensor) -> Tensor:
        """Values of integers."""
        return (q.to(torch.int32) - self.zero_point).float() * along(self.scales(q), q)

    def scales(self, q: Tensor) -> Tensor:
        """The scale of each value on axis 1 of q, or the one scale of all."""
        if not self.scale.dim():
            return self.scale
        return self.scale.repeat_interleave(q.shape[1] // len(self.scale))

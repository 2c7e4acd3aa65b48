"""The integer poolings: they keep the grid of what they read, or work on accumulators."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from quantlib.quantization.integer_layers import Grid, IntegerOperator

Side = int | tuple[int, ...]
"""One number for height and width, or one for each."""


class IntegerPool2d(IntegerOperator):
    """A pooling; it keeps the grid. Without one it works on int32 accumulators, whose zero is 0."""

    settings: ClassVar[tuple[str, ...]] = ("output_grid",)

    def __init__(self, *, output_grid: Grid | None) -> None:
        super().__init__()
        self.output_grid = output_grid


class IntegerMaxPool2d(IntegerPool2d):
    """The largest integer of each window; padding never wins. Introduced in notebook 08."""

    settings = ("output_grid", "kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def __init__(
        self, *, output_grid: Grid | None, kernel_size: Side, stride: Side,
        padding: Side = 0, dilation: Side = 1, ceil_mode: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(output_grid=output_grid)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.dilation, self.ceil_mode = dilation, ceil_mode

    def forward(self, q: Tensor) -> Tensor:
        """Compare integers, as int32: torch numbers the places of a uint8 map in uint8 too, and runs out."""
        window = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        return F.max_pool2d(q.int(), *window).to(q.dtype)


class IntegerAverage(IntegerPool2d):
    """The mean of each window, on its own grid: round((sum - n * z) * (1 / n)) + z.

    Half goes to even under the rounding `float`, and up otherwise, as in TFLite. Of accumulators it is
    round(2^fraction_bits * sum / n): their own step is coarse beside logits of few bits.
    Base of the two below.
    """

    def __init__(self, *, output_grid: Grid | None, rounding: str, fraction_bits: int) -> None:
        super().__init__(output_grid=output_grid)
        if not 0 <= fraction_bits <= 30:  # it may come from a file, and 32 bits have no room for more
            raise ValueError(f"fraction_bits is {fraction_bits}, not 0 to 30")
        self.rounding, self.fraction_bits = rounding, fraction_bits

    @property
    def zero(self) -> int:
        """The integer that stands for 0."""
        return 0 if self.output_grid is None else self.output_grid.zero_point

    def mean(self, sums: Tensor, count: Tensor) -> Tensor:
        """From float64 sums of q - zero over `count` places each to the integers that go out."""
        return rounded_mean(sums, count, self.output_grid, self.rounding, self.fraction_bits)


class IntegerAvgPool2d(IntegerAverage):
    """The mean of each window; the border counts as zeros, or not at all. Introduced in notebook 08."""

    settings = (
        "output_grid", "rounding", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
        "divisor_override", "fraction_bits",
    )  # fmt: skip

    def __init__(
        self, *, output_grid: Grid | None, kernel_size: Side, stride: Side,
        padding: Side = 0, ceil_mode: bool = False, count_include_pad: bool = True,
        divisor_override: int | None = None, rounding: str = "float", fraction_bits: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(output_grid=output_grid, rounding=rounding, fraction_bits=fraction_bits)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad
        self.divisor_override = divisor_override

    def forward(self, q: Tensor) -> Tensor:
        """Sum by window, divide by how many places torch would count."""
        window = (self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
        sums = F.avg_pool2d(q.double() - self.zero, *window, divisor_override=1)
        ones = torch.ones(1, 1, *q.shape[2:], dtype=torch.float64)
        inside = F.avg_pool2d(ones, *window, divisor_override=1)
        count = inside / F.avg_pool2d(ones, *window, divisor_override=self.divisor_override)
        return self.mean(sums, torch.round(count))


class IntegerAdaptiveAvgPool2d(IntegerAverage):
    """The mean of each of output_size windows that cover the map. Introduced in notebook 08."""

    settings = ("output_grid", "rounding", "output_size", "fraction_bits")

    def __init__(
        self, *, output_grid: Grid | None, output_size: int | None | tuple[int | None, ...],
        rounding: str = "float", fraction_bits: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(output_grid=output_grid, rounding=rounding, fraction_bits=fraction_bits)
        self.output_size = output_size

    def forward(self, q: Tensor) -> Tensor:
        """Average over windows that differ in size by one, as torch cuts them."""
        means = F.adaptive_avg_pool2d(q.double() - self.zero, self.output_size)  # type: ignore[arg-type]
        height, width = (
            [-((-(i + 1) * total) // parts) - i * total // parts for i in range(parts)]
            for total, parts in zip(q.shape[2:], means.shape[2:], strict=True)
        )
        count = torch.tensor(height, dtype=torch.float64)[:, None] * torch.tensor(width)
        return self.mean(torch.round(means * count), count)


def rounded_mean(
    sums: Tensor, count: Tensor, grid: Grid | None, rounding: str, fraction_bits: int = 0
) -> Tensor:
    """round(sums / count) + zero_point as uint8; without a grid round(2^fraction_bits * sums / count), int32.

    The rounding `float` is a requantization with M = 1 / count, as in ONNX Runtime. Otherwise float64 stands
    for integers: a quotient of two is a half exactly, or further from it than the last bit.
    """
    if grid is None:
        return torch.round(sums / (count / 2**fraction_bits)).to(torch.int32)
    if rounding == "float":
        mean = torch.round(sums.float() * (1.0 / count.float()))
    else:
        mean = torch.floor(sums / count + 0.5)
    return (mean + grid.zero_point).clamp(grid.quant_min, grid.quant_max).to(torch.int32).to(torch.uint8)

"""Everything that can run the network on this machine: ours, and the toolkits by their own defaults."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from quantlib.errors import QuantlibError
from quantlib.quantization.graph import fuse
from quantlib.quantization.qconfig import QConfig, check_name
from quantlib.quantization.workflow import Prepared, calibrate, convert, prepare
from quantlib.study.rivals import runtimes
from quantlib.study.rivals.pytorch import (
    Compiled,
    Network,
    bfloat16,
    pt2e,
    torch_ao,
    torch_ao_calibrated,
)
from quantlib.study.rivals.runtimes import OnnxRuntimeInt8
from quantlib.subject.benchmark import bfloat16_is_fast
from quantlib.subject.data import Images, batches


@dataclass
class Contest:
    """What every rival gets: the trained float32 network, and training images to calibrate on.

    Introduced in notebook 18.
    """

    model: nn.Module
    images: Images

    @cached_property
    def shown(self) -> Tensor:
        """The images as one batch."""
        return next(batches(self.images, batch_size=len(self.images)))[0]

    @cached_property
    def folded(self) -> nn.Module:
        """The float32 network with batch norm folded, channels last."""
        return fuse(self.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    @cached_property
    def prepared(self) -> Prepared:
        """Calibrated by quantlib's defaults."""
        return calibrate(prepare(self.model, QConfig()), batches(self.images))

    def ours(self, kind: str, engine: str | None = None) -> nn.Module:
        """One of quantlib's own networks."""
        return convert(self.prepared, kind, engine=engine)


def _bf16(make: Callable[[Contest], Network]) -> Callable[[Contest], Network]:
    """Refuses where bfloat16 has no instructions: it would be emulated, many times slower than float32."""

    def made(contest: Contest) -> Network:
        if not bfloat16_is_fast("cpu"):
            raise RuntimeError("this CPU has no instructions for bfloat16")
        return make(contest)

    return made


RIVALS: dict[str, Callable[[Contest], Network]] = {
    "fp32": lambda c: c.model,
    "fp32_folded": lambda c: c.folded,
    "bf16": _bf16(lambda c: bfloat16(c.folded)),
    "fp32_compiled": lambda c: Compiled(c.folded),
    "torch_ao": lambda c: torch_ao(c.model, c.images, "x86"),
    "torch_ao_fbgemm": lambda c: torch_ao(c.model, c.images, "fbgemm"),
    "torch_ao_onednn": lambda c: torch_ao(c.model, c.images, "onednn"),
    "torchao_pt2e": lambda c: pt2e(c.model, c.images),
    "onnxruntime_fp32": lambda c: runtimes.onnxruntime_fp32(c.model, c.shown),
    "onnxruntime": lambda c: OnnxRuntimeInt8(c.model, c.shown),
    "openvino_fp32": lambda c: runtimes.openvino_float(c.model, c.shown),
    "openvino_bf16": _bf16(lambda c: runtimes.openvino_float(c.model, c.shown, "bf16")),
    "openvino": lambda c: runtimes.openvino_nncf(c.model, c.images),
    "mixed": lambda c: c.ours("mixed"),
    "integer": lambda c: c.ours("integer", "onnxruntime"),
    "integer_openvino": lambda c: c.ours("integer", "openvino"),
}
"""Who can run the network, and how it is made. Ours are the last three. Introduced in notebook 18."""

OURS = ("mixed", "integer", "integer_openvino")
"""The rivals that are quantlib's own."""
FAMILIES = {
    "torch_fp32": ("fp32", "fp32_folded", "fp32_compiled"),
    "torch_ao": ("torch_ao", "torch_ao_fbgemm", "torch_ao_onednn", "torchao_pt2e"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "integers": ("integer", "integer_openvino"),
}
"""Rivals of one maker: compared by the fastest. "torch_ao" is PyTorch's int8, by any of its toolkits."""


@dataclass
class Field:
    """Who takes part: networks by name, the seconds each took to make, and why the others are missing."""

    networks: dict[str, Network]
    seconds: dict[str, float]
    missing: dict[str, str]

    def leave_out(self, name: str, error: Exception) -> None:
        """List a rival as missing, and say why."""
        self.networks.pop(name, None)
        self.seconds.pop(name, None)
        self.missing[name] = first_line(error)
        print(f"{name} is not here: {self.missing[name]}")


def gather(contest: Contest, names: Iterable[str] = tuple(RIVALS)) -> Field:
    """Make the rivals named; one whose toolkit or kernels are not here is listed with the reason.

    The calibration that quantlib's own share is not counted as any one's making. ConfigError for an unknown
    name. Introduced in notebook 18.
    """
    names = list(names)
    for name in names:
        check_name(name, RIVALS, "rival")
    if set(names) & set(OURS):
        _ = contest.prepared
    field = Field({}, {}, {})
    for name in names:
        began = time.perf_counter()
        try:
            field.networks[name] = RIVALS[name](contest)
            field.seconds[name] = time.perf_counter() - began
        except MISSING as error:
            field.leave_out(name, error)
    return field


MISSING = (ImportError, AttributeError, RuntimeError, QuantlibError)
"""What a toolkit raises that is not installed, or that finds no kernels for this machine."""


def if_here(what: str, make: Callable[[], Any]) -> Any:
    """What `make` returns, or None and one printed sentence where the toolkit or its kernels are missing.

    Introduced in notebook 07.
    """
    try:
        return make()
    except MISSING as error:
        print(f"{what} is not here: {first_line(error)}")
        return None


def first_line(error: Exception) -> str:
    """What went wrong, in one line for people."""
    return (str(error).splitlines() or [type(error).__name__])[0]


__all__ = [
    "FAMILIES", "OURS", "RIVALS", "Contest", "Field", "Network", "OnnxRuntimeInt8", "first_line", "gather",
    "if_here", "torch_ao", "torch_ao_calibrated",
]  # fmt: skip

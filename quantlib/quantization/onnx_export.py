"""The way out: a network as an ONNX file that other runtimes read, and what they make of it, counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quantlib.errors import ConfigError
from quantlib.quantization.integer_engine import RuntimeEngine, onnxruntime_session
from quantlib.quantization.integer_graph import Integer
from quantlib.quantization.integer_onnx import FORMS, IMAGES, apart, float_to_onnx, to_onnx
from quantlib.quantization.integer_openvino import openvino_model
from quantlib.quantization.onnx_writer import onnx_package
from quantlib.quantization.qconfig import check_name
from quantlib.subject.files import write_atomically

Runtime = Callable[[bytes, Mapping[str, Any]], Mapping[str, Any]]
"""Runs a serialized ONNX graph: arrays in by name, arrays out by name."""


def export_onnx(
    model: nn.Module, path: str | Path, shape: Sequence[int] = (3, 32, 32), form: str = "qdq"
) -> Path:
    """Write a network as an ONNX file, checked by onnx.checker; returns the path.

    form "qdq" and "qlinear" take an integer network or its engine, see `to_onnx`; "float" takes a float32
    network that `fuse` takes. shape: (channels, height, width); the number of images stays open.
    "qlinear" uses ONNX Runtime's own operators for additions, averages and concatenations, so that only that
    runtime reads it; "qdq" is standard ONNX. Raises ConfigError for another form or another kind of network,
    UnsupportedOperatorError with the place of what cannot be written. Introduced in notebook 18.
    """
    check_name(form, (*FORMS, "float"), "form")
    written = _float(model, shape) if form == "float" else to_onnx(_integer(model, form), shape, form=form)
    checked(written)
    write_atomically(Path(path), written.SerializeToString())
    return Path(path)


def checked(model: Any) -> None:
    """Let onnx.checker look at a model; shapes are inferred too where every operator is ONNX's own."""
    standard = all(not node.domain for node in model.graph.node)
    onnx_package("onnx.checker").check_model(model, full_check=standard)


def _float(model: nn.Module, shape: Sequence[int]) -> Any:
    if isinstance(model, (Integer, RuntimeEngine)):
        raise ConfigError("form='float' needs the float32 network; use form='qdq' for the integer one.")
    return float_to_onnx(model, shape)


def _integer(model: nn.Module, form: str) -> Integer:
    found = model.reference if isinstance(model, RuntimeEngine) else model
    if not isinstance(found, Integer):
        raise ConfigError(
            f"form={form!r} needs an integer network; call convert(prepared, kind='integer') first, "
            "or use form='float'."
        )
    return found


class Difference(NamedTuple):
    """How far a runtime's integers lie from the reference's, for one layer."""

    layer: str
    differing: int
    largest: int
    n: int


def layer_differences(model: Integer, x: Tensor, run: Runtime, form: str = "qdq") -> list[Difference]:
    """Each step alone, fed with the reference's own integers, so that no difference is passed on.

    x: images (n, c, h, w); `run`: the runtime. Raises ConfigError as `to_onnx`. Introduced in notebook 18.
    """
    wanted = model.integers(x)
    graph, names = apart(model, x.shape[1:], form)
    given = {name: wanted[name.removeprefix("given_")].numpy() for name in names}
    found = run(graph.SerializeToString(), {IMAGES: x.detach().float().contiguous().numpy(), **given})
    differences = []
    for name, q in wanted.items():
        if q.dtype == torch.uint8:
            away = (torch.from_numpy(found[name]).int() - q.int()).abs()
            differences.append(Difference(name, int((away > 0).sum()), int(away.max()), away.numel()))
    return differences


def onnxruntime(model: bytes, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """A Runtime: ONNX Runtime. Introduced in notebook 08."""
    session = onnxruntime_session(model)
    names = [result.name for result in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(arrays)), strict=True))


def openvino(model: bytes, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """A Runtime: OpenVINO."""
    results = openvino_model(model)(dict(arrays))
    return {min(port.get_names(), key=len): array for port, array in results.items()}

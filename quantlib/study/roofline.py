"""The roofline: what this machine can do at most, and how far each layer of a network comes."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from quantlib.quantization.integer_engine import onnxruntime_session, session_options
from quantlib.quantization.integer_graph import Integer
from quantlib.quantization.integer_layers import IntegerConv2d, IntegerLayer
from quantlib.quantization.integer_onnx import IMAGES
from quantlib.quantization.integer_openvino import openvino_model
from quantlib.subject.benchmark import interleave

SIDES = (512, 1024, 2048)
"""Sides of the square matrices that are multiplied for the peaks."""


class Peaks(NamedTuple):
    """The most that was measured: operations a second (a product and a sum are two), bytes a second."""

    int8: float
    fp32: float
    bandwidth: float


def peaks(repeats: int = 5, at_least: float = 0.05, megabytes: int = 128) -> Peaks:
    """Measure the peaks of matrix products in int8 and float32, and of copying. Introduced in notebook 18.

    A float32 product is also done as a 1x1 convolution, whose kernels are another library's: on some machines
    they are twice as fast, and the peak is the best that was seen.
    """
    calls: dict[str, Any] = {}
    for side in SIDES:
        a = torch.randint(-127, 128, (side, side), dtype=torch.int8)
        x = a.float()
        weight = x.reshape(side, side, 1, 1).contiguous(memory_format=torch.channels_last)
        pixels = x.reshape(1, side, -1, 16).contiguous(memory_format=torch.channels_last)
        calls[f"int8 {side}"] = lambda a=a: torch._int_mm(a, a)
        calls[f"fp32 {side}"] = lambda x=x: torch.mm(x, x)
        calls[f"fp32 conv {side}"] = lambda pixels=pixels, weight=weight: F.conv2d(pixels, weight)
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8)
    into = torch.empty_like(source)
    calls["copy"] = lambda: into.copy_(source)
    found = interleave(calls, repeats, at_least=at_least)

    def best(*ways: str) -> float:
        return max(2 * side**3 / found[f"{way} {side}"].median for side in SIDES for way in ways)

    return Peaks(best("int8"), best("fp32", "fp32 conv"), 2 * len(source) / found["copy"].median)


class Cost(NamedTuple):
    """What a layer has to do for a batch: operations, and bytes that it reads and writes at least.

    A product with padding is no work: direct kernels leave it out. On a 4x4 map that is 31 % of a 3x3 layer.
    """

    operations: int
    bytes_int8: int
    bytes_fp32: int


def layer_costs(model: Integer, x: Tensor) -> dict[str, Cost]:
    """The Cost of each convolution and linear layer for the images x. Introduced in notebook 18."""
    seen = model.integers(x)
    costs = {}
    for name, module, inputs in model.steps:
        if isinstance(module, IntegerLayer):
            out, weight = seen[name], module.weight
            values = seen[inputs[0]].numel() + weight.numel() + out.numel()
            operations = 2 * products(module, seen[inputs[0]])
            channels = len(weight)  # int8: an int32 offset and a float32 multiplier each; float32: a bias
            costs[name] = Cost(operations, values + 8 * channels, 4 * (values + channels))
    return costs


def products(layer: IntegerLayer, q: Tensor) -> int:
    """How many products of a weight with a value of the input a layer makes of the batch q.

    For a convolution out * in / groups times the sum of a convolution of ones with ones, which counts the
    places of the kernel that lie on the image. Introduced in notebook 18.
    """
    if not isinstance(layer, IntegerConv2d):
        return len(q) * layer.weight.numel()
    kernel, where = torch.ones(1, 1, *layer.weight.shape[2:]), layer.geometry
    image = torch.ones(1, 1, *q.shape[2:])
    places = F.conv2d(image, kernel, None, where.stride, where.padding, where.dilation).sum()
    return len(q) * round(float(places)) * (layer.weight.numel() // kernel.numel())


def onnxruntime_seconds(graph: bytes, x: Tensor, repeats: int = 5) -> dict[str, float]:
    """Seconds of each step of an exported graph in ONNX Runtime, by its own clock: the median of the runs."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime_session(graph, options)
        for _ in range(repeats + 1):
            session.run(None, {IMAGES: x.contiguous().numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
    runs = [(each["name"], each["dur"] / 1e6) for each in events if each.get("cat") == "Node"]
    return _by_step(runs, repeats)


def openvino_seconds(graph: bytes, x: Tensor, repeats: int = 5) -> dict[str, float]:
    """Seconds of each step of an exported graph in OpenVINO, by its own clock: the median of the runs."""
    request = openvino_model(graph, PERF_COUNT=True).create_infer_request()
    runs = []
    for _ in range(repeats + 1):
        request.infer([x.contiguous().numpy()])
        runs += [(each.node_name, each.real_time.total_seconds()) for each in request.profiling_info]
    return _by_step(runs, repeats)


def _by_step(runs: Iterable[tuple[str, float]], repeats: int) -> dict[str, float]:
    """The median over runs of each node's time, the first run left out; nodes of one step added up.

    A node is called STEP/OPERATOR_7, or STEP where a runtime has fused it, with what the runtime adds behind.
    """
    times: dict[str, list[float]] = defaultdict(list)
    for name, seconds in runs:
        times[name].append(seconds)
    steps: dict[str, float] = defaultdict(float)
    for name, seconds_of in times.items():
        if len(seconds_of) > repeats:
            steps[ADDED.sub("", name.split("/")[0])] += median(seconds_of[-repeats:])
    return dict(steps)


ADDED = re.compile(r"(_nchwc|_token_\d+|_kernel_time)+$")
"""What ONNX Runtime puts behind a node's name."""


def achieved(costs: Mapping[str, Cost], seconds: Mapping[str, float]) -> dict[str, float]:
    """Operations a second of every layer whose time is known."""
    return {name: costs[name].operations / seconds[name] for name in costs if seconds.get(name, 0) > 0}

"""The saturation predictor and emulator against oneDNN itself, held to AVX2 in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from quantlib.quantization.saturation import INT16, layers_at_risk, pair_sum_range

# name: (inputs, outputs, kernel, groups, padding, batch or image side)
LAYERS = {
    "conv 1x1": (16, 16, 1, 1, 0, 8),
    "conv 3x3": (16, 16, 3, 1, 1, 8),
    "stem": (3, 64, 3, 1, 1, 32),
    "odd channels": (5, 16, 3, 1, 0, 8),
    "wide": (64, 32, 1, 1, 0, 8),
    "stride-free 17": (17, 16, 1, 1, 0, 8),
    "grouped": (16, 16, 3, 4, 1, 8),
    "depthwise": (16, 16, 3, 16, 1, 8),
    "linear": (33, 10, 0, 1, 0, 4),
    "linear one row": (16, 16, 0, 1, 0, 1),
}


def run(x: Any, w: Any, groups: int, padding: int) -> Any:
    """oneDNN's uint8 x int8 kernel with unit scales: float32 accumulators."""
    outputs = w.shape[0]
    ones, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    if w.dim() == 2:
        packed = torch.ops.onednn.qlinear_prepack(w, list(x.shape))
        return torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 0, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
    steps = [1, 1], [padding, padding], [1, 1]
    packed = torch.ops.onednn.qconv_prepack(w, ones, 1.0, 0, *steps, groups, list(x.shape))
    return torch.ops.onednn.qconv2d_pointwise(
        x, 1.0, 0, packed, ones, zeros, None, *steps, groups, 1.0, 0, torch.float32, "none", [], ""
    )


def exact(x: Any, w: Any, groups: int, padding: int) -> Any:
    x, w = x.double(), w.double()
    return x @ w.t() if w.dim() == 2 else torch.nn.functional.conv2d(x, w, None, 1, padding, 1, groups)


def emulated(x: Any, w: Any, groups: int, padding: int) -> Any:
    from quantlib.quantization.saturation import saturating_conv2d, saturating_linear

    return saturating_linear(x, w) if w.dim() == 2 else saturating_conv2d(x, w, 1, padding, groups)


def weights(name: str, g: Any, limit: int = 127) -> Any:
    inputs, outputs, kernel, groups, _, _ = LAYERS[name]
    shape = (outputs, inputs // groups, kernel, kernel) if kernel else (outputs, inputs)
    return torch.randint(-limit - 1, limit + 1, shape, generator=g).to(torch.int8)


def image(name: str) -> Any:
    inputs, _, kernel, _, _, side = LAYERS[name]
    shape = (1, inputs, side, side) if kernel else (side, inputs)
    x = torch.zeros(shape, dtype=torch.uint8)
    return x.to(memory_format=torch.channels_last) if kernel else x


def two_weights(name: str, i: int, j: int, value: int) -> Any:
    """Weights that are 0 but for reduction positions i and j (kernel position major, channel minor)."""
    w = torch.zeros_like(weights(name, torch.Generator()))
    rows = w.unsqueeze(-1) if w.dim() == 2 else w.flatten(2)
    channels = rows.shape[1]
    for position in (i, j):
        rows[0, position % channels, position // channels] = value
    return rows.squeeze(-1) if w.dim() == 2 else rows.view_as(w)


def report() -> dict[str, Any]:
    """Everything that needs the AVX2 kernels; runs in the child process."""
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    result: dict[str, Any] = {"emulator": {}, "pairs": [], "unflagged": 0}
    for name, (inputs, _, kernel, groups, padding, _) in LAYERS.items():
        x = image(name)
        x.copy_(torch.randint(0, 256, x.shape, generator=g))
        x[:, ::3] = 255
        w = weights(name, g)
        got, want = run(x, w, groups, padding), exact(x, w, groups, padding)
        mismatches = int((got != emulated(x, w, groups, padding)).sum())
        result["emulator"][name] = [mismatches, int((got != want).sum()), got.numel()]
        full = torch.full_like(x, 255)
        reach = inputs // groups * max(kernel * kernel, 1)
        near = [(i, j) for i in range(reach) for j in range(i + 1, min(i + 4, reach))]
        far = [(i, (7 * i + 11) % reach) for i in range(reach) if (7 * i + 11) % reach != i]
        for i, j in (near + far)[:: max(1, len(near + far) // 60)]:
            for value in (64, 65, 127, -64, -65, -128):
                w = two_weights(name, i, j, value)
                wrong = bool((run(full, w, groups, padding) != exact(full, w, groups, padding)).any())
                result["pairs"].append([name, i, j, value, wrong])
        for limit, top in ((63, 255), (127, 127)):
            w = weights(name, g, limit)
            x = torch.randint(0, top + 1, full.shape, generator=g).to(torch.uint8)
            x = x.to(memory_format=torch.channels_last) if kernel else x
            result["unflagged"] += int((run(x, w, groups, padding) != exact(x, w, groups, padding)).sum())
    return result


@pytest.fixture(scope="module")
def avx2() -> dict[str, Any]:
    """The report of a process whose oneDNN may use AVX2 at most."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("needs an x86 CPU with AVX2")
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def test_emulator_equals_the_kernels(avx2: dict[str, Any]) -> None:
    assert {name: counts[0] for name, counts in avx2["emulator"].items()} == dict.fromkeys(LAYERS, 0)
    saturated = {name for name, counts in avx2["emulator"].items() if counts[1]}
    assert saturated == set(LAYERS) - {"depthwise"}


def test_flagged_pairs_are_the_wrong_ones(avx2: dict[str, Any]) -> None:
    seen = [0, 0]
    for name, i, j, value, wrong in avx2["pairs"]:
        low, high = pair_sum_range(two_weights(name, i, j, value), 255)
        flagged = bool(((low < INT16.min) | (high > INT16.max)).any())
        assert flagged == wrong, (name, i, j, value)
        assert flagged == bool(layers_at_risk({name: (two_weights(name, i, j, value), 255)}))
        seen[flagged] += 1
    assert min(seen) > 100


def test_no_unflagged_layer_is_wrong(avx2: dict[str, Any]) -> None:
    assert avx2["unflagged"] == 0


if __name__ == "__main__":
    print(json.dumps(report()))

"""Timing that can be trusted: rivals in turn within one run, medians, ratios pair by pair."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from quantlib.errors import ConfigError


@cache
def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _flags() -> set[str]:
    """What the CPU can do; 64-bit Arm calls it features."""
    return set((_cpuinfo().get("flags") or _cpuinfo().get("Features", "")).split())


def has_vnni() -> bool:
    """True where the CPU multiplies u8 by s8 into int32 without the saturating int16 step in between."""
    return bool(_flags() & {"avx512_vnni", "avx_vnni"}) or torch.cpu._is_vnni_supported()


def bfloat16_is_fast(device: str = "cpu") -> bool:
    """True where bfloat16 has its own instructions; elsewhere autocast is many times slower than float32.

    Introduced in notebook 07.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def isa() -> str:
    """Name the vector instructions that decide the speed of int8 and bfloat16, widest first."""
    flags = _flags()
    wanted = ("amx_int8", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512f", "avx2", "asimd", "i8mm")
    return " ".join(flag for flag in wanted if flag in flags) or torch.backends.cpu.get_cpu_capability()


def machine() -> dict[str, Any]:
    """Describe the computer of a measurement: CPU, ISA, threads, versions. Introduced in notebook 00."""
    return {
        "cpu": _cpuinfo().get("model name", platform.processor() or platform.machine()),
        "isa": isa(), "vnni": has_vnni(), "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
        "system": platform.system(),
    }  # fmt: skip


def device_name(device: str | torch.device) -> str:
    """Name a device, and which GPU it is: "cpu", "cuda: NVIDIA H100". Introduced in notebook 01."""
    name = str(device)
    return name if torch.device(name).type != "cuda" else f"cuda: {torch.cuda.get_device_name(device)}"


def made_on(device: str | torch.device) -> dict[str, Any]:
    """What a training run says of where it ran: {"device", "machine"}. Introduced in notebook 01."""
    return {"device": device_name(device), "machine": machine()}


@dataclass(frozen=True)
class Timing:
    """Seconds of one candidate: the median, the quartiles low and high, and every counted run.

    Introduced in notebook 07.
    """

    median: float
    low: float
    high: float
    runs: tuple[float, ...]


def interleave(
    candidates: Mapping[str, Callable[[], Any]],
    repeats: int = 7,
    warmup: int = 1,
    at_least: float = 0.0,
    pause: float = 0.0,
) -> dict[str, Timing]:
    """Time each candidate once a round, in turn, so that a drift of the machine meets all alike.

    The first `warmup` rounds (compilation, packing, caches) are not counted. A turn calls its candidate until
    `at_least` seconds have passed, and counts the mean: one call of milliseconds measures the machine's
    hiccups. `pause` seconds go before each turn: the idle threads of one runtime spin on for a while after
    its last call, on the cores that the next one wants. Seconds; ConfigError for fewer than one counted
    round. Introduced in notebook 07.
    """
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}; it must be at least 1")
    runs: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        for name, call in candidates.items():
            time.sleep(pause)
            seconds = _seconds_a_call(call, at_least)
            if turn >= warmup:
                runs[name].append(seconds)
    return {name: timing(seconds) for name, seconds in runs.items()}


def _seconds_a_call(call: Callable[[], Any], at_least: float) -> float:
    """The mean over as many calls as fill `at_least` seconds, one or more."""
    started, calls, passed = time.perf_counter(), 0, 0.0
    while not calls or passed < at_least:
        call()
        calls, passed = calls + 1, time.perf_counter() - started
    return passed / calls


def timing(seconds: list[float]) -> Timing:
    """Summarize counted runs by their median and quartiles."""
    low, high = np.percentile(seconds, [25, 75])
    return Timing(median(seconds), float(low), float(high), tuple(seconds))


def ratio(timings: Mapping[str, Timing], slow: str, fast: str) -> tuple[float, float, float]:
    """Return how many times faster `fast` is than `slow`: median, lowest and highest over the rounds.

    Each round gives one quotient of two runs made one after the other. Introduced in notebook 07.
    """
    quotients = [a / b for a, b in zip(timings[slow].runs, timings[fast].runs, strict=True)]
    return median(quotients), min(quotients), max(quotients)


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """The median with its distribution-free interval: (median, low, high).

        P(median < k-th smallest) = sum over i < k of C(n, i) / 2**n

    The k-th smallest and the k-th largest, k the largest with both tails together at most 1 - level. Unlike
    the lowest and the highest it gets narrower with more rounds. Below six values it is their whole range.
    Source: the sign test. Introduced in notebook 13.

    >>> median_interval([3.0, 1.0, 2.0, 5.0, 4.0, 7.0, 6.0, 9.0, 8.0])
    (5.0, 2.0, 8.0)
    """
    ordered, n = sorted(values), len(values)
    tail, k = 0.0, 0
    while k < n // 2 and 2 * (tail + comb(n, k) / 2**n) <= 1 - level:
        tail, k = tail + comb(n, k) / 2**n, k + 1
    k = max(k, 1)
    return median(ordered), ordered[k - 1], ordered[n - k]

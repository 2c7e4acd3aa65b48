"""What it costs to make a kernel anew by every call: oneDNN's cache of primitives, on and off.

The cache is set by an environment variable before the process starts, so each side is a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from quantlib.errors import StudyError
from quantlib.quantization.kernels import Geometry, int8_conv, pack_conv
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.subject.models import build

VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
"""The environment variable that sets the size of oneDNN's cache."""
SIDES = {"cached": "1024", "made_anew": "0"}
"""Its values."""


def with_and_without_cache(turns: int = 1, network: bool = True) -> dict[str, dict[str, list[float]]]:
    """CPU seconds a call at batch 1, one thread, "layer" and "network": side -> what -> one number a turn.

    The layer is a 3x3 int8 convolution, 128 channels, 16x16; the network the mixed ResNet-50, random weights.
    Introduced in notebook 18.
    """
    found: dict[str, dict[str, list[float]]] = {side: {} for side in SIDES}
    for _ in range(turns):
        for side, capacity in SIDES.items():
            command = [sys.executable, "-m", "quantlib.study.primitives", *(["--network"] if network else [])]
            environment = {**os.environ, VARIABLE: capacity}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
                raise StudyError(f"{' '.join(command[1:])} failed: {said[-1]}")
            for what, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                found[side].setdefault(what, []).append(seconds)
    return found


def layer() -> Callable[[], Any]:
    """One int8 convolution of one image."""
    q = torch.randint(0, 256, (1, 128, 16, 16), dtype=torch.uint8).to(memory_format=torch.channels_last)
    weight, ones = torch.randint(-127, 128, (128, 128, 3, 3), dtype=torch.int8), torch.ones(128)
    geometry = Geometry([1, 1], [1, 1], [1, 1], 1)
    packed, zeros = pack_conv(weight, ones, geometry, list(q.shape)), torch.zeros(128, dtype=torch.int8)
    return lambda: int8_conv(q, (1.0, 0), packed, ones, zeros, None, geometry, True)


def mixed() -> Callable[[], Any]:
    """The mixed ResNet-50 on one image of noise."""
    x = torch.randn(1, 3, 32, 32)
    config = QConfig(activation=Scheme(observer="minmax"))
    network = convert(calibrate(prepare(build("resnet50").eval(), config), [x]), "mixed")
    return lambda: network(x)


def seconds(call: Callable[[], Any], at_least: float = 0.3) -> float:
    """The median over as many calls as fill `at_least` seconds."""
    call()
    runs: list[float] = []
    while sum(runs) < at_least:
        began = time.thread_time()
        call()
        runs.append(time.thread_time() - began)
    return median(runs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the seconds of a call as JSON; of the thread's own time, which other programs do not disturb."""
    parser = argparse.ArgumentParser(prog="python -m quantlib.study.primitives", description=__doc__)
    parser.add_argument("--network", action="store_true", help="the mixed ResNet-50 too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    calls = {"layer": layer, "network": mixed} if options.network else {"layer": layer}
    with torch.no_grad():
        print(json.dumps({what: seconds(make()) for what, make in calls.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

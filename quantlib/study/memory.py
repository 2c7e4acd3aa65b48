"""How much memory a network needs while it runs: each in a process of its own."""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from quantlib.study.rivals import MISSING, RIVALS, Contest
from quantlib.subject import data
from quantlib.subject.checkpoints import load_checkpoint
from quantlib.subject.command import at_least_one

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Where Linux tells the peak of resident memory, and where it is told to count anew."""
LIMIT = 600
"""Seconds that one rival may take."""


def peak_memory(names: Iterable[str], batch: int = 64, network: str = "resnet50") -> dict[str, float]:
    """Peak resident megabytes of each rival during inference, its libraries included; only where known.

    A rival that is missing, or a system without /proc, is left out. Introduced in notebook 18.
    """
    found = {}
    for name in names:
        command = [sys.executable, "-m", "quantlib.study.memory", name, "--batch", str(batch)]
        command += ["--network", network, "--threads", str(torch.get_num_threads())]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=LIMIT, check=False, env=os.environ
            )
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            found[name] = float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])
    return found


def peak_of(name: str, batch: int, network: str = "resnet50") -> float:
    """Megabytes that this process reaches at most while the rival computes a batch, not its first one."""
    images = data.load("calibration").take(32)
    contest = Contest(load_checkpoint(network), images)
    run, x = RIVALS[name](contest), contest.shown[:1].repeat(batch, 1, 1, 1)
    del contest
    with torch.no_grad():
        run(x)  # some engines only now make what they compute with, others have made it
        forget()
        run(x)
    return megabytes("VmHWM")


def forget() -> None:
    """Give freed memory back to the system, and let the peak be counted from here."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")


def megabytes(field: str) -> float:
    """A field of this process's status, such as VmHWM, the peak of resident memory."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024 / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one rival's peak as JSON; 1 where it is missing or the system does not tell."""
    parser = argparse.ArgumentParser(prog="python -m quantlib.study.memory", description=__doc__)
    parser.add_argument("name", choices=list(RIVALS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--threads", type=at_least_one, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        peak = peak_of(options.name, options.batch, options.network)
    except (*MISSING, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"name": options.name, "peak_mb": round(peak, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

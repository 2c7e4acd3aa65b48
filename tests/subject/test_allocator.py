"""Freed memory stays with the process: what is asked for again costs no new page."""

import resource
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from quantlib.subject.allocator import keep_freed_memory
import torch
kept = keep_freed_memory() if {keep} else False
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 * 2**20)          # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_the_same_memory_is_used_again():
    def run(keep):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(keep=keep)], capture_output=True, text=True, check=True
        )
        kept, faults = done.stdout.split()
        return kept == "True", int(faults)

    kept, faults = run(True)
    if not kept:
        pytest.skip("this C library has no mallopt")
    page = resource.getpagesize()
    assert faults < 64 * 2**20 / page / 10
    assert run(False)[1] > 10 * max(faults, 1)

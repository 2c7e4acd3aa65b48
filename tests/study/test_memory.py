"""Peak memory: of a process of its own, and what the kernel reports is what was used."""

import sys

import pytest
import torch

from quantlib.study import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


def test_the_peak_is_that_of_what_happened_since():
    memory.forget()
    before = memory.megabytes("VmHWM")
    block = torch.ones(50_000_000)  # 200 MB
    high = memory.megabytes("VmHWM")
    assert 190 <= high - before <= 260
    del block
    memory.forget()
    assert memory.megabytes("VmHWM") < high - 150


def test_a_rival_in_its_own_process_and_a_missing_one():
    found = memory.peak_memory(["fp32", "nobody"], batch=1, network="resnet50")
    assert list(found) == ["fp32"]
    assert 94 < found["fp32"] < 3000  # the weights alone have 94 MB

"""The mixed network against FP32 eager in the same run; the recorded figure comes from the study."""

import pytest
import torch

from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.subject.benchmark import has_vnni, interleave
from quantlib.subject.models import build

pytestmark = [pytest.mark.oracle, pytest.mark.slow]


@pytest.mark.skipif(not has_vnni(), reason="the speed is promised for CPUs with VNNI")
@torch.no_grad()
def test_int8_is_faster_than_fp32():
    model = build("resnet50").eval().to(memory_format=torch.channels_last)
    x = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    prepared = prepare(model, QConfig(activation=Scheme(observer="minmax")))
    mixed = convert(calibrate(prepared, [x[:8]]), "mixed")
    timings = interleave({"fp32": lambda: model(x), "mixed": lambda: mixed(x)}, repeats=5)
    # About 3 on a quiet machine. The shortest run of each is what other work on the machine disturbs least;
    # the bound leaves no room for laying the weights out at every call, which costs half of the speed.
    assert min(timings["fp32"].runs) / min(timings["mixed"].runs) > 1.7

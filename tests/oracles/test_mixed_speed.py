"""The mixed network against FP32 eager in the same run; the recorded figure comes from the study."""

import pytest
import torch

from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.subject.benchmark import has_vnni, interleave, ratio
from quantlib.subject.models import build

pytestmark = [pytest.mark.oracle, pytest.mark.slow]


@pytest.mark.skipif(not has_vnni(), reason="the speed is promised for CPUs with VNNI")
@torch.no_grad()
def test_int8_is_faster_than_fp32():
    model = build("resnet50").eval().to(memory_format=torch.channels_last)
    x = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    prepared = prepare(model, QConfig(activation=Scheme(observer="minmax")))
    mixed = convert(calibrate(prepared, [x[:8]]), "mixed")
    timings = interleave({"fp32": lambda: model(x), "mixed": lambda: mixed(x)}, repeats=3)
    # 2.5 and more on a quiet machine; the bound leaves room for a busy one, and none for laying the
    # weights out at every call, which costs more than half of the speed.
    assert ratio(timings, "fp32", "mixed")[0] > 1.6

"""Every integer operator against torch's quantized kernels, and whole networks that nobody here wrote."""

import contextlib

import pytest
import torch
from torch.nn import functional as F

from quantlib.quantization.integer_elementwise import IntegerAdd, IntegerConcat, IntegerReLU
from quantlib.quantization.integer_layers import Grid, IntegerConv2d, IntegerLinear
from quantlib.quantization.integer_pooling import IntegerAdaptiveAvgPool2d, IntegerAvgPool2d, IntegerMaxPool2d
from quantlib.quantization.kernels import Geometry
from quantlib.quantization.metrics import sqnr_db
from quantlib.quantization.qconfig import QConfig
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.subject.zoo import ZOO, random_network

pytestmark = pytest.mark.oracle

IN, OUT = Grid(0.021, 113, 0, 255), Grid(0.037, 128, 0, 255)
CONVOLUTIONS = {
    "3x3": (16, 24, 3, Geometry([1, 1], [1, 1], [1, 1], 1)),
    "1x1": (32, 48, 1, Geometry([1, 1], [0, 0], [1, 1], 1)),
    "stride": (8, 16, 3, Geometry([2, 2], [1, 1], [1, 1], 1)),
    "uneven": (3, 16, (5, 3), Geometry([2, 1], [2, 1], [1, 1], 1)),
    "dilated": (8, 8, 3, Geometry([1, 1], [2, 2], [2, 2], 1)),
    "one input": (1, 32, 1, Geometry([1, 1], [0, 0], [1, 1], 1)),
    "grouped": (16, 32, 3, Geometry([1, 1], [1, 1], [1, 1], 4)),
    "depthwise": (16, 16, 3, Geometry([2, 2], [1, 1], [1, 1], 16)),
}


@contextlib.contextmanager
def engine(name):
    if name not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this build of torch has no {name}")
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, name
    yield torch.ops.quantized
    torch.backends.quantized.engine = before


def quantized(q, grid):
    """The same integers as one of torch's own quantized tensors."""
    return torch._make_per_tensor_quantized_tensor(q, grid.scale, grid.zero_point)


def quantized_weight(weight, scale):
    zero = torch.zeros(len(scale), dtype=torch.int64)
    return torch._make_per_channel_quantized_tensor(weight, scale.double(), zero, 0)


def random_layer(out, shape, fan_in):
    """int8 weights, their scales, and an int32 bias with the float32 bias that means it.

    The integers come first: a random float32 bias that falls between two of them is rounded by torch through
    1/scale, and once in some thousand draws to the other side.
    """
    weight = torch.randint(-127, 128, (out, *shape), dtype=torch.int8)
    scale = (torch.rand(out) + 0.5) / (127 * fan_in**0.5)
    unit = torch.tensor(IN.scale) * scale
    whole = torch.round(torch.randn(out) / unit).int()
    return weight, scale, whole, whole * unit


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("kernels", ["fbgemm", "qnnpack"])
def test_convolution(name, relu, kernels):
    channels, out, side, geometry = CONVOLUTIONS[name]
    shape = (channels // geometry.groups, *(side if isinstance(side, tuple) else (side, side)))
    weight, scale, whole, bias = random_layer(out, shape, shape[0] * 9)
    if kernels == "fbgemm":  # it adds its bias in float32
        whole, bias = torch.zeros_like(whole), torch.zeros(out)
    if name == "depthwise" and kernels == "fbgemm":
        weight = weight // 2  # its depthwise kernel adds pairs of products in 16 bits, and these fit
    q = torch.randint(0, 256, (4, channels, 13, 13), dtype=torch.uint8)
    ours = IntegerConv2d(
        weight, whole, scale, name=name, input_grid=IN, output_grid=OUT, relu=relu,
        geometry=geometry,
    )(q)  # fmt: skip
    with engine(kernels) as ops:
        packed = ops.conv2d_prepack(quantized_weight(weight, scale), bias, *geometry)
        run = ops.conv2d_relu if relu else ops.conv2d
        wanted = run(quantized(q, IN), packed, OUT.scale, OUT.zero_point).int_repr()
    assert len(wanted.unique()) > 10 and (ours != wanted).sum() == 0


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kernels", ["fbgemm", "qnnpack"])
def test_linear(relu, kernels):
    weight, scale, whole, bias = random_layer(40, (256,), 256)
    if kernels == "fbgemm":
        whole, bias = torch.zeros_like(whole), torch.zeros(40)
    q = torch.randint(0, 256, (300, 256), dtype=torch.uint8)
    ours = IntegerLinear(weight, whole, scale, name="fc", input_grid=IN, output_grid=OUT, relu=relu)(q)
    with engine(kernels) as ops:
        packed = ops.linear_prepack(quantized_weight(weight, scale), bias)
        run = ops.linear_relu if relu else ops.linear
        wanted = run(quantized(q, IN), packed, OUT.scale, OUT.zero_point).int_repr()
    assert len(wanted.unique()) > 10 and (ours != wanted).sum() == 0


def test_accumulators_are_exact():
    for channels, out, side, geometry in CONVOLUTIONS.values():
        shape = (channels // geometry.groups, *(side if isinstance(side, tuple) else (side, side)))
        weight, scale, whole, _ = random_layer(out, shape, 9)
        q = torch.randint(0, 256, (2, channels, 9, 9), dtype=torch.uint8)
        layer = IntegerConv2d(
            weight, whole, scale, name="", input_grid=IN, output_grid=OUT, geometry=geometry
        )
        # float64 holds every sum exactly, and does dilation, which torch's int32 convolution does not.
        wanted = F.conv2d(q.double() - IN.zero_point, weight.double(), layer.bias.double(), *geometry)
        assert layer.accumulate(q).dtype == torch.int32 and torch.equal(layer.accumulate(q).double(), wanted)


@pytest.mark.parametrize("relu", [False, True])
def test_addition(relu):
    a, b = (torch.randint(0, 256, (8, 32, 16, 16), dtype=torch.uint8) for _ in range(2))
    for out in (OUT, Grid(0.0537, 3, 0, 255)):
        ours = IntegerAdd(input_grids=[IN, OUT], output_grid=out, relu=relu)(a, b)
        run = torch.ops.quantized.add_relu if relu else torch.ops.quantized.add
        theirs = run(quantized(a, IN), quantized(b, OUT), out.scale, out.zero_point).int_repr()
        exact = (
            sum((q.double() - grid.zero_point) * grid.scale for q, grid in ((a, IN), (b, OUT))) / out.scale
        )
        tie = (exact.abs().frac() - 0.5).abs() < 1e-4  # float32 cannot tell: ORT and torch differ there
        assert not ((ours != theirs) & ~tie).any()
        assert (ours.int() - theirs.int()).abs().max() <= 1


def test_relu():
    q = torch.randint(0, 256, (4, 8, 9, 9), dtype=torch.uint8)
    wanted = torch.relu(quantized(q, IN)).int_repr()
    assert torch.equal(IntegerReLU(input_grid=IN, output_grid=IN)(q), wanted)
    clipped = F.hardtanh(quantized(q, OUT), 0.0, 3.0).int_repr()
    assert torch.equal(IntegerReLU(input_grid=OUT, output_grid=OUT, ceiling=3.0)(q), clipped)


@pytest.mark.parametrize(
    "window", [(2, 2, 0, 1, False), (3, 2, 1, 1, False), (3, 2, 0, 1, True), (3, 1, 1, 2, False)]
)
def test_max_pool(window):
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    q = torch.randint(0, 100, (3, 6, 14, 14), dtype=torch.uint8)
    ours = IntegerMaxPool2d(output_grid=IN, **dict(zip(names, window, strict=True)))(q)
    assert torch.equal(ours, F.max_pool2d(quantized(q, IN), *window).int_repr())


@pytest.mark.parametrize("size", [1, 2, (3, 5), 7])
def test_adaptive_average_pool(size):
    for shape in ((4, 512, 4, 4), (2, 64, 7, 7), (2, 32, 12, 9), (2, 32, 7, 14)):
        q = torch.randint(0, 256, shape, dtype=torch.uint8)
        ours = IntegerAdaptiveAvgPool2d(output_grid=OUT, output_size=size)(q)
        wrong = ours != F.adaptive_avg_pool2d(quantized(q, OUT), size).int_repr()
        # torch multiplies by 1/n in float32: for n = 98 not every half is a half to it.
        mean = F.adaptive_avg_pool2d(q.double(), size)
        tie = (mean.frac() - 0.5).abs() < 1e-9
        assert not (wrong & ~tie).any() and (shape != (4, 512, 4, 4) or not wrong.any())


def test_average_pools_differ_from_torch_only_in_ties_at_an_odd_zero_point():
    """torch adds the zero point before rounding, so that half goes to the even stored integer."""
    q = torch.randint(0, 256, (4, 64, 8, 8), dtype=torch.uint8)
    ours = IntegerAvgPool2d(output_grid=IN, kernel_size=2, stride=2)(q)
    theirs = F.avg_pool2d(quantized(q, IN), 2).int_repr()
    tie = F.avg_pool2d(q.double(), 2).frac() == 0.5
    assert (ours != theirs).any() and torch.equal(ours != theirs, tie)


@pytest.mark.parametrize(
    "window",
    [
        (2, 2, 0, False, True, None),
        (3, 2, 1, False, True, None),
        (3, 2, 1, False, False, None),
        (3, 2, 1, True, True, None),
        (3, 2, 1, True, False, None),
        (2, 2, 0, False, True, 3),
    ],
)
def test_average_pool(window):
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    q = torch.randint(0, 256, (3, 16, 14, 11), dtype=torch.uint8)
    ours = IntegerAvgPool2d(output_grid=OUT, **dict(zip(names, window, strict=True)))(q)
    exact = F.avg_pool2d(q.double() - OUT.zero_point, *window).round() + OUT.zero_point
    assert torch.equal(ours.double(), exact.clamp(0, 255))
    assert torch.equal(ours, F.avg_pool2d(quantized(q, OUT), *window).int_repr())


def test_concat():
    a, b = (torch.randint(0, 256, (4, size, 8, 8), dtype=torch.uint8) for size in (24, 40))
    ours = IntegerConcat(input_grids=[IN, OUT], output_grid=OUT)(a, b)
    wanted = torch.ops.quantized.cat(
        [quantized(a, IN), quantized(b, OUT)], 1, OUT.scale, OUT.zero_point
    ).int_repr()
    assert (ours != wanted).sum() == 0 and torch.equal(ours[:, 24:], b)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_networks_of_torchvision(name):
    model, x = random_network(name)
    prepared = calibrate(prepare(model, QConfig(), example=x[:2]), [x])
    integer, simulated = convert(prepared, "integer", engine="reference")(x), convert(prepared)(x)
    wanted = model(x)
    assert sqnr_db(wanted, integer) > 20
    assert abs(sqnr_db(wanted, integer) - sqnr_db(wanted, simulated)) < 2

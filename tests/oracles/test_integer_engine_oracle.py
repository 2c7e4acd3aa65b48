"""Every integer operator, and whole networks, against ONNX Runtime's kernels: not one integer may differ.

The data are made to lie on ties, or a float32 step beside them: there alone do the formulas differ.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.quantization.fused import Flatten
from quantlib.quantization.integer import to_integer
from quantlib.quantization.integer_elementwise import IntegerAdd, IntegerConcat, IntegerReLU
from quantlib.quantization.integer_graph import Step, assemble
from quantlib.quantization.integer_layers import Dequantize, Grid, IntegerConv2d, IntegerLinear
from quantlib.quantization.integer_pooling import IntegerAdaptiveAvgPool2d, IntegerAvgPool2d, IntegerMaxPool2d
from quantlib.quantization.kernels import Geometry
from quantlib.quantization.mixed_layers import Quantize
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, prepare
from quantlib.subject.checkpoints import load_checkpoint
from quantlib.subject.models import build
from quantlib.subject.zoo import ZOO, random_network
from tests.quantization.networks import InPlaceShortcut, Spellings, Tiny, randomize

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from quantlib.quantization.integer_engine import Engine  # noqa: E402

pytestmark = pytest.mark.oracle

UNIT = Grid(1.0, 0, 0, 255)
POINT = Geometry([1, 1], [0, 0], [1, 1], 1)
EVERY = torch.arange(256.0)


def f32(value):
    return torch.tensor(value, dtype=torch.float32).item()


def grids(low=0, high=255):
    """Scales over three decades, half of them powers of two, which make ties; every zero point."""
    wild = st.floats(2**-8, 2, width=32)
    scale = st.one_of(wild, st.sampled_from([2.0**-k for k in range(7)]))
    return st.builds(lambda s, z: Grid(f32(s), z, low, high), scale, st.integers(low, high))


def differing(steps, x):
    """How many integers of `steps` on images x differ between reference and engine, by step."""
    last = steps[-1].name
    reference = assemble([*steps, Step("dequantize", Dequantize(torch.ones(())), [last])], "float")
    return compare(reference, x)


def compare(reference, x):
    engine = Engine(reference)
    wanted, got = reference.integers(x), engine.integers(x)
    assert list(wanted) == list(got)
    counts = {name: int((q != got[name]).sum()) for name, q in wanted.items()}
    logits = reference.graph_module.get_submodule("dequantize")(list(wanted.values())[-1])
    counts["logits"] = int((logits != engine(x)).sum())
    return {name: count for name, count in counts.items() if count}


def first(grid=UNIT):
    return Step("input", Quantize(grid.qparams), [""])


def channel(index, name):
    """A step that takes one of two channels, as it is."""
    weight = torch.zeros(1, 2, 1, 1, dtype=torch.int8)
    weight[0, index] = 1
    common = {"name": name, "input_grid": UNIT, "output_grid": UNIT, "geometry": POINT}
    conv = IntegerConv2d(weight, torch.zeros(1, dtype=torch.int32), torch.ones(1), **common)
    return Step(name, conv, ["input"])


def pairs(*operator):
    """First, two tensors that hold all 65,536 pairs of integers, then an operator that reads both."""
    return [first(), channel(0, "a"), channel(1, "b"), *operator]


ALL_PAIRS = torch.stack(torch.meshgrid(EVERY, EVERY, indexing="ij"))[None]


@settings(max_examples=12, deadline=None)
@given(
    st.tuples(grids(), grids()),
    st.one_of(grids(), grids(0, 127)),
    st.booleans(),
    st.sampled_from([None, 6.0]),
)
def test_addition_of_all_pairs(inputs, output, relu, ceiling):
    add = IntegerAdd(input_grids=inputs, output_grid=output, relu=relu, ceiling=ceiling)
    assert not differing(pairs(Step("add", add, ["a", "b"])), ALL_PAIRS)


@settings(max_examples=25, deadline=None)
@given(st.tuples(grids(), grids()), grids(), st.sampled_from([1, 2, -1]))
def test_concatenation_of_all_integers(inputs, output, dim):
    join = IntegerConcat(input_grids=inputs, output_grid=output, dim=dim)
    assert not differing(pairs(Step("join", join, ["a", "b"])), ALL_PAIRS[:, :, :, ::5])


def test_concatenation_on_one_grid_is_a_copy():
    join = IntegerConcat(input_grids=[UNIT, UNIT], output_grid=UNIT)
    assert not differing(pairs(Step("join", join, ["a", "b"])), ALL_PAIRS)


@settings(max_examples=25, deadline=None)
@given(grids(), st.one_of(grids(), grids(0, 15)), st.sampled_from([None, 6.0]))
def test_relu_of_all_integers(before, after, ceiling):
    relu = IntegerReLU(input_grid=before, output_grid=after, ceiling=ceiling)
    assert not differing([first(), Step("relu", relu, ["input"])], EVERY.view(1, 1, 16, 16))


@settings(max_examples=25, deadline=None)
@given(st.one_of(grids(), grids(0, 127)))
def test_quantize_next_to_ties(grid):
    ties = (torch.arange(-300, 300) + 0.5) * grid.scale
    x = torch.stack([ties.nextafter(torch.tensor(-1e9)), ties, ties.nextafter(torch.tensor(1e9)), ties * 1e6])
    assert not differing([first(grid)], x.view(4, 1, 20, 30))


CONVOLUTIONS = {
    "3x3": (16, 24, 3, Geometry([1, 1], [1, 1], [1, 1], 1)),
    "1x1": (32, 48, 1, POINT),
    "stride": (8, 16, 3, Geometry([2, 2], [1, 1], [1, 1], 1)),
    "uneven": (3, 16, (5, 3), Geometry([2, 1], [2, 1], [1, 1], 1)),
    "dilated": (8, 8, 3, Geometry([1, 1], [2, 2], [2, 2], 1)),
    "grouped": (16, 32, 3, Geometry([1, 1], [1, 1], [1, 1], 4)),
    "depthwise": (16, 16, 3, Geometry([2, 2], [1, 1], [1, 1], 16)),
}
OUTPUTS = {
    "plain": (Grid(f32(0.037), 131, 0, 255), False, None),
    "relu": (Grid(f32(0.037), 0, 0, 255), True, None),
    "relu_above_zero": (Grid(f32(0.037), 77, 0, 255), True, None),
    "relu6": (Grid(f32(0.037), 3, 0, 255), True, 6.0),
    "four_bits": (Grid(f32(0.4), 7, 0, 15), False, None),
    "accumulators": (None, False, None),
    "relu_of_accumulators": (None, True, None),
    "relu6_of_accumulators": (None, True, 6.0),
}


def layer(weight, output, **more):
    """Scales that put the accumulator 1,000 + channel, and its odd multiples, on a tie."""
    grid, relu, ceiling = OUTPUTS[output]
    channels, inputs = len(weight), Grid(f32(0.021), 113, 0, 255)
    unit = 0.037 if grid is None else grid.scale
    scale = (0.5 * unit / (inputs.scale * (1000 + torch.arange(channels)))).float()
    bias = torch.randint(-3000, 3000, (channels,), dtype=torch.int32)
    common = {"name": "layer", "input_grid": inputs, "output_grid": grid, "relu": relu, "ceiling": ceiling}
    kind = IntegerConv2d if "geometry" in more else IntegerLinear
    return kind(weight, bias, scale, **common, **more)


def int8(*shape):
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def uint8(*shape):
    return torch.randint(0, 256, shape).float()


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name, output):
    torch.manual_seed(0)
    channels, out, kernel, geometry = CONVOLUTIONS[name]
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    conv = layer(int8(out, channels // geometry.groups, *kernel), output, geometry=geometry)
    assert not differing([first(), Step("layer", conv, ["input"])], uint8(3, channels, 13, 11))


def test_the_multiplier_is_made_in_this_order():
    """One accumulator a channel, its scale such that it falls on a tie or next to one."""
    torch.manual_seed(0)
    acc = torch.randint(1000, 2**17, (4096,))
    step_in, out = f32(0.0173), Grid(f32(0.0391), 101, 0, 255)
    scale = ((torch.randint(0, 150, (4096,)) + 0.5) / acc * out.scale / step_in).float()
    weight = torch.zeros(4096, 16, 1, 1, dtype=torch.int8)
    common = {"name": "layer", "input_grid": Grid(step_in, 7, 0, 255), "output_grid": out, "geometry": POINT}
    conv = IntegerConv2d(weight, acc.to(torch.int32), scale, **common)
    assert not differing([first(), Step("layer", conv, ["input"])], torch.full((1, 16, 1, 1), 7.0))


@pytest.mark.parametrize("output", OUTPUTS)
def test_linear(output):
    torch.manual_seed(0)
    linear = layer(int8(40, 72), output)
    steps = [first(), Step("flatten", Flatten(), ["input"]), Step("layer", linear, ["flatten"])]
    assert not differing(steps, uint8(50, 8, 3, 3))


AVERAGES = {
    "2x2": IntegerAvgPool2d(output_grid=UNIT, kernel_size=2, stride=2),
    "2x7, where 1/14 is inexact": IntegerAvgPool2d(output_grid=UNIT, kernel_size=(2, 7), stride=1),
    "border": IntegerAvgPool2d(output_grid=UNIT, kernel_size=3, stride=2, padding=1),
    "border not counted": IntegerAvgPool2d(
        output_grid=UNIT, kernel_size=4, stride=2, padding=1, count_include_pad=False
    ),
    "ceil": IntegerAvgPool2d(output_grid=UNIT, kernel_size=2, stride=2, padding=1, ceil_mode=True),
    "divisor": IntegerAvgPool2d(output_grid=UNIT, kernel_size=3, stride=3, divisor_override=7),
    "whole map": IntegerAvgPool2d(output_grid=UNIT, kernel_size=(14, 10), stride=1),
    "global": IntegerAdaptiveAvgPool2d(output_grid=UNIT, output_size=1),
    "rows": IntegerAdaptiveAvgPool2d(output_grid=UNIT, output_size=(1, None)),
    "uneven": IntegerAdaptiveAvgPool2d(output_grid=UNIT, output_size=(4, 3)),
    "larger": IntegerAdaptiveAvgPool2d(output_grid=UNIT, output_size=17),
}
MAXIMA = {
    "2x2": IntegerMaxPool2d(output_grid=UNIT, kernel_size=2, stride=2),
    "border": IntegerMaxPool2d(output_grid=UNIT, kernel_size=3, stride=2, padding=1),
    "ceil": IntegerMaxPool2d(output_grid=UNIT, kernel_size=3, stride=2, ceil_mode=True),
    "ceil and border": IntegerMaxPool2d(output_grid=UNIT, kernel_size=2, stride=3, padding=1, ceil_mode=True),
    "dilated": IntegerMaxPool2d(output_grid=UNIT, kernel_size=(3, 2), stride=1, dilation=(2, 3)),
}


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("zero_point", [0, 7, 128])
def test_average(name, zero_point):
    torch.manual_seed(0)
    pool = AVERAGES[name]
    pool.output_grid = Grid(f32(0.03), zero_point, 0, 255)
    x = torch.randint(0, 3, (4, 32, 14, 10)).float() + max(zero_point - 1, 0)  # few values: many ties
    assert not differing([first(), Step("pool", pool, ["input"])], torch.cat([x, uint8(2, 32, 14, 10)]))


@pytest.mark.parametrize("name", MAXIMA)
def test_maximum(name):
    torch.manual_seed(0)
    assert not differing([first(), Step("pool", MAXIMA[name], ["input"])], uint8(3, 5, 14, 10))


@pytest.mark.parametrize("pool", [AVERAGES["global"], AVERAGES["border not counted"], MAXIMA["border"]])
def test_poolings_of_accumulators(pool):
    torch.manual_seed(0)
    conv = layer(int8(6, 3, 1, 1), "accumulators", geometry=POINT)
    pool.output_grid = None
    steps = [first(), Step("layer", conv, ["input"]), Step("pool", pool, ["layer"])]
    try:
        assert not differing(steps, uint8(3, 3, 14, 10))
    finally:
        pool.output_grid = UNIT


SCHEMES = {
    "affine": Scheme(observer="minmax"),
    "symmetric": Scheme(symmetric=True, observer="minmax"),
    "four bits": Scheme(bits=4, observer="minmax"),
}


def integer(network, x, activation=SCHEMES["affine"], **options):
    return to_integer(calibrate(prepare(network, QConfig(activation=activation, **options)), [x]))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("network", [Tiny, Spellings, lambda: build("resnet20")])
def test_small_networks(network, scheme):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 16, 16)
    assert not compare(integer(randomize(network()), x, SCHEMES[scheme]), x)


@pytest.mark.parametrize("network", [Tiny, InPlaceShortcut])
def test_a_result_on_a_grid(network):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 16, 16)
    assert not compare(integer(randomize(network()), x, quantize_output=True), x)


SLOW = ("vgg11_bn", "googlenet")
NETWORKS = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ZOO]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_networks_of_torchvision(name):
    network, x = random_network(name, images=2)
    assert not compare(integer(network, x), x)


@torch.no_grad()
def test_resnet50():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    assert not compare(integer(load_checkpoint("resnet50"), x), x)

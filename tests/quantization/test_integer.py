"""The integer network and its operators, by small integers worked out by hand and by float64."""

import copy
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantlib.errors import ConfigError
from quantlib.quantization import integer_matmul
from quantlib.quantization.fused import Flatten
from quantlib.quantization.graph import fuse
from quantlib.quantization.integer import Integer, to_integer
from quantlib.quantization.integer_elementwise import IntegerAdd, IntegerConcat, IntegerReLU
from quantlib.quantization.integer_layers import (
    Dequantize,
    Grid,
    IntegerConv2d,
    IntegerLayer,
    IntegerLinear,
)
from quantlib.quantization.integer_pooling import IntegerAdaptiveAvgPool2d, IntegerAvgPool2d, IntegerMaxPool2d
from quantlib.quantization.kernels import Geometry
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.requantize import ROUNDINGS
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.subject.models import build
from tests.quantization.networks import Excited, InPlaceShortcut, Spellings, Tiny, randomize

MINMAX = QConfig(activation=Scheme(observer="minmax"))
HALF, WHOLE = Grid(0.5, 10, 0, 255), Grid(1.0, 0, 0, 255)


def made(network=Tiny, config=MINMAX, **options):
    prepared = prepare(randomize(network()), config, **options)
    return calibrate(prepared, [torch.randn(16, 3, 16, 16)])


def uint8(values):
    return torch.tensor(values, dtype=torch.uint8)


def linear(weight, bias=0, output_grid=WHOLE, input_grid=HALF, **options):
    weight = torch.tensor([weight], dtype=torch.int8)
    bias = torch.tensor([bias], dtype=torch.int32)
    return IntegerLinear(
        weight, bias, torch.tensor([0.25]), name="fc", input_grid=input_grid, output_grid=output_grid,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("network", [Tiny, Spellings, InPlaceShortcut, lambda: build("resnet20")])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_close_to_the_float_network(network, symmetric, rounding):
    config = QConfig(activation=Scheme(symmetric=symmetric, observer="minmax"), quantize_output=symmetric)
    prepared = made(network, config)
    x = torch.randn(5, 3, 16, 16)
    wanted = prepared.graph_module(x)
    if network is InPlaceShortcut and not symmetric:
        with pytest.raises(ConfigError, match="result comes from 'add'.*quantize_output=True"):
            to_integer(prepared, rounding)
        return
    assert (to_integer(prepared, rounding)(x) - wanted).abs().max() < 0.06 * wanted.abs().max()


@pytest.mark.parametrize("bits", [2, 5])
def test_fewer_bits_stay_on_their_grid(bits):
    config = QConfig(
        Scheme(bits=bits, symmetric=True, per_channel=True), Scheme(bits=bits, observer="minmax")
    )
    for rounding in ROUNDINGS:
        found = to_integer(made(Spellings, config), rounding).integers(torch.randn(4, 3, 16, 16))
        largest = [q.max().item() for q in found.values() if q.dtype == torch.uint8]
        assert 2 ** (bits - 1) < max(largest) < 2**bits


def test_integers_all_the_way():
    integer, x = to_integer(made()), torch.randn(20, 3, 16, 16)
    found = integer.integers(x)
    assert list(found) == [step.name for step in integer.steps][:-1] and list(found)[0] == "input"
    assert {name for name, q in found.items() if q.dtype != torch.uint8} == {"fc"}
    assert found["fc"].dtype == torch.int32 and all(len(q) == 20 for q in found.values())
    assert not list(integer.parameters()) and integer(x).dtype == torch.float32
    assert torch.equal(integer.steps[-1].module(found["fc"]), integer(x))
    for step in integer.steps[1:-1]:
        inputs = [found[name] for name in step.inputs]
        assert torch.equal(step.module(*inputs), found[step.name]), step.name


def test_sub_batches_and_layout_do_not_change_a_bit():
    integer, x = to_integer(made()), torch.randn(8, 3, 16, 16)
    wanted = integer(x)
    for sub_batch in (1, 3, 64):
        integer.sub_batch = sub_batch
        assert torch.equal(integer(x), wanted)
        assert torch.equal(integer(x.contiguous(memory_format=torch.channels_last)), wanted)
    assert torch.equal(copy.deepcopy(integer)(x), wanted)


def test_weight_bytes_are_a_quarter():
    integer = to_integer(made(lambda: build("resnet20")))
    floats = 4 * sum(p.numel() for p in fuse(build("resnet20").eval()).parameters())
    assert floats / 4 < integer.weight_bytes < 0.28 * floats


def test_a_linear_layer_by_hand():
    q = uint8([[12, 9, 10]])  # 1.0, -0.5, 0.0
    layer = linear([4, -8, 100], bias=3)  # acc = 2*4 + 1*8 + 3 = 19, worth 0.125 each: 2.375
    assert layer.accumulate(q).tolist() == [[19]] and layer(q).tolist() == [[2]]
    assert layer.offset.tolist() == [3 - 10 * 96] and layer.multiplier.tolist() == [0.125]
    assert layer.accumulator_bound() == 245 * 112 + 3
    negative = linear([-4, 0, 0])  # acc = -8: -1.0
    assert negative(q).tolist() == [[0]]
    assert linear([-4, 0, 0], output_grid=HALF)(q).tolist() == [[8]]
    assert linear([-4, 0, 0], output_grid=HALF, relu=True)(q).tolist() == [[10]]
    assert linear([127, 0, 0], output_grid=HALF, relu=True)(q).tolist() == [[74]]  # 31.75
    assert linear([127, 0, 0], output_grid=HALF, relu=True, ceiling=6.0)(q).tolist() == [[22]]


def test_accumulators_of_the_result_are_rectified_too():
    q = uint8([[12, 9, 10]])
    assert linear([-4, 0, 0], output_grid=None)(q).tolist() == [[-8]]
    assert linear([-4, 0, 0], output_grid=None, relu=True)(q).tolist() == [[0]]
    assert linear([127, 0, 0], output_grid=None, relu=True, ceiling=6.0)(q).tolist() == [[48]]


def test_padding_means_zero():
    weight = torch.ones(1, 1, 3, 3, dtype=torch.int8)
    bias, scale = torch.zeros(1, dtype=torch.int32), torch.ones(1)
    layer = IntegerConv2d(
        weight, bias, scale, name="conv", input_grid=HALF, output_grid=None,
        geometry=Geometry([1, 1], [1, 1], [1, 1], 1),
    )  # fmt: skip
    assert not layer(torch.full((1, 1, 4, 4), 10, dtype=torch.uint8)).any()  # all 0.0, border and all
    assert layer(torch.full((1, 1, 2, 2), 11, dtype=torch.uint8)).tolist() == [[[[4, 4], [4, 4]]]]


def test_overflow_of_32_bits_is_found_and_named():
    k = 70_000  # 70,000 * 255 * 127 is more than 2**31
    wide = linear([127] * k, input_grid=Grid(0.5, 0, 0, 255), output_grid=None)
    assert not wide.fits and wide.accumulator_bound() == 127 * 255 * k
    small = torch.full((1, k), 3, dtype=torch.uint8)
    assert wide(small).item() == 127 * 3 * k  # possible, but not with these images
    with pytest.raises(ConfigError, match=f"'fc' needs an accumulator of {127 * 255 * k}.*fewer bits"):
        wide(torch.full((1, k), 255, dtype=torch.uint8))
    assert linear([127] * 60_000, input_grid=Grid(0.5, 0, 0, 255)).fits


def test_without_an_exact_int8_kernel_float64_computes(monkeypatch):
    integer, x = to_integer(made(Spellings)), torch.randn(4, 3, 16, 16)
    wanted = integer.integers(x)
    monkeypatch.setattr(integer_matmul, "int_mm_is_exact", lambda: False)
    found = integer.integers(x)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_kernel_that_saturates_is_found_out(monkeypatch):
    def saturating(a, b):
        pairs = (a[:, :, None].int() * b[None].int()).view(len(a), -1, 2, b.shape[1]).sum(2)
        return pairs.clamp(-(2**15), 2**15 - 1).sum(1, dtype=torch.int32)

    integer_matmul.int_mm_is_exact.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not integer_matmul.int_mm_is_exact()
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: a.int() @ b.int())
    integer_matmul.int_mm_is_exact.cache_clear()
    assert integer_matmul.int_mm_is_exact()
    integer_matmul.int_mm_is_exact.cache_clear()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_addition_by_hand(rounding):
    a, b = uint8([10, 12, 14, 0]), uint8([0, 3, 255, 0])  # 0, 1, 2, -5 and 0, 3, 255, 0
    add = IntegerAdd(input_grids=[HALF, WHOLE], output_grid=WHOLE, rounding=rounding)
    assert add(a, b).tolist() == [0, 4, 255, 0]
    out = Grid(2.0, 100, 0, 200)
    plain = IntegerAdd(input_grids=[HALF, WHOLE], output_grid=out, rounding=rounding)(a, b)
    half = {"float": 98, "gemmlowp": 97, "single_rounding": 98}[rounding]  # -2.5
    assert plain.tolist() == [100, 102, 200, half]
    clipped = IntegerAdd(
        input_grids=[HALF, WHOLE], output_grid=out, relu=True, ceiling=6.0, rounding=rounding
    )
    assert clipped(a, b).tolist() == [100, 102, 103, 100]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_addition_is_near_the_exact_sum(rounding):
    a, b = torch.arange(256).repeat(256), torch.arange(256).repeat_interleave(256)
    grids = Grid(0.0371, 99, 0, 255), Grid(0.0113, 3, 0, 255)
    add = IntegerAdd(input_grids=grids, output_grid=Grid(0.044, 90, 0, 255), rounding=rounding)
    exact = ((a - 99).double() * 0.0371 + (b - 3).double() * 0.0113) / 0.044 + 90
    error = (add(a.byte(), b.byte()).double() - exact.clamp(0, 255)).abs()
    assert error.max() < 0.5001


def test_relu_and_concat_by_hand():
    q = uint8([[0, 10, 13, 30]])
    relu = IntegerReLU(input_grid=HALF, output_grid=WHOLE)
    assert relu(q).tolist() == [[0, 0, 2, 10]]
    assert IntegerReLU(input_grid=HALF, output_grid=WHOLE, ceiling=6.0)(q).tolist() == [[0, 0, 2, 6]]
    assert IntegerReLU(input_grid=HALF, output_grid=HALF)(q).tolist() == [[10, 10, 13, 30]]
    joined = IntegerConcat(input_grids=[HALF, WHOLE], output_grid=HALF)(q, uint8([[0, 1, 200, 7]]))
    assert joined.tolist() == [[0, 10, 13, 30, 10, 12, 255, 24]]


def test_max_pool_of_uint8_maps_that_are_large():
    q = torch.randint(0, 256, (2, 5, 30, 30), dtype=torch.uint8)
    pool = IntegerMaxPool2d(output_grid=HALF, kernel_size=3, stride=2, padding=1)
    assert torch.equal(pool(q).double(), F.max_pool2d(q.double(), 3, 2, 1)) and pool(q).dtype == torch.uint8
    zeros = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    assert not pool(zeros).any()


def test_means_by_hand():
    q = uint8([[[[11, 10], [10, 11]]]])  # sum of q - z: 2, mean 0.5
    for rounding, wanted in {"float": 10, "gemmlowp": 11, "single_rounding": 11}.items():
        pool = IntegerAdaptiveAvgPool2d(output_grid=HALF, output_size=1, rounding=rounding)
        assert pool(q).item() == wanted
        window = IntegerAvgPool2d(output_grid=HALF, kernel_size=2, stride=2, rounding=rounding)
        assert window(q).item() == wanted
    accumulators = torch.tensor([[[[2**30, 2**30], [2**30, 2**30 + 4]]]], dtype=torch.int32)
    mean = IntegerAdaptiveAvgPool2d(output_grid=None, output_size=1)(accumulators)
    assert mean.dtype == torch.int32 and mean.item() == 2**30 + 1


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("override", [None, 5])
def test_average_pool_counts_as_torch_does(include, ceil_mode, override):
    window = (3, 2, 1, ceil_mode, include, override)
    q = torch.randint(0, 256, (2, 3, 8, 11), dtype=torch.uint8)
    pool = IntegerAvgPool2d(
        output_grid=HALF, kernel_size=3, stride=2, padding=1, ceil_mode=ceil_mode,
        count_include_pad=include, divisor_override=override,
    )  # fmt: skip
    exact = (F.avg_pool2d(q.double() - 10, *window) + 10).clamp(0, 255)
    assert (pool(q).double() - exact).abs().max() <= 0.5 + 1e-5


def test_dequantize_by_channel_and_after_flattening():
    step = Dequantize(torch.tensor([1.0, 10.0]))
    acc = torch.tensor([[[[1, 2]], [[3, 4]]]], dtype=torch.int32)
    assert step(acc).tolist() == [[[[1.0, 2.0]], [[30.0, 40.0]]]]
    assert step(Flatten()(acc)).tolist() == [[1.0, 2.0, 30.0, 40.0]]
    assert Dequantize(torch.tensor(0.5), zero_point=10)(uint8([9, 12])).tolist() == [-0.5, 1.0]


class Average(nn.Module):
    """Ends in a pooling of the last convolution, as SqueezeNet does."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2)

    def forward(self, x):
        return torch.flatten(self.pool(torch.relu(self.conv(x))), 1)


def test_a_result_that_was_pooled():
    prepared = made(Average)
    integer, x = to_integer(prepared), torch.randn(4, 3, 16, 16)
    assert integer.integers(x)["flatten"].dtype == torch.int32
    assert torch.allclose(integer(x), prepared.graph_module(x), atol=0.03)


class Twice(nn.Module):
    """Adds a tensor to itself; one channel has a large bias and no weights."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        with torch.no_grad():
            self.conv.weight[1], self.conv.bias[1] = 0.0, 5.0

    def forward(self, x):
        x = self.conv(x)
        return self.fc((x + x).mean((2, 3)))


def test_a_bias_beyond_32_bits_widens_its_channel():
    prepared = made(Twice)
    integer, x = to_integer(prepared), torch.randn(4, 3, 16, 16)
    layer = integer.graph_module.conv
    assert layer.bias[1] == 2**30 and (layer.bias.abs() < 2**20).tolist() == [True, False, True, True]
    wanted = prepared.graph_module(x)
    assert (integer(x) - wanted).abs().max() < 0.03 * wanted.abs().max()


@pytest.mark.parametrize(
    ("network", "config", "message"),
    [
        (Tiny, QConfig(weight=Scheme()), "Weights of 'conv1' have a zero point"),
        (Tiny, QConfig(activation=None), "Activation 'input' has a scheme of None"),
        (Tiny, QConfig(activation=Scheme(per_channel=True)), "activation 'input' has one per channel"),
        (Tiny, QConfig(by_name={"fc": None}), "Weights of 'fc' are left in float32"),
        (Tiny, QConfig(by_type={"add": QConfig(activation=None)}), "Activation 'add' has a scheme of None"),
        (Excited, MINMAX, "'block.gate' is left in float32"),
    ],
)
def test_refusals_name_the_layer(network, config, message):
    with pytest.raises(ConfigError, match=message):
        to_integer(made(network, config, unsupported="float"))


def test_unknown_rounding_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'gemmlowp'"):
        to_integer(made(), "gemlowp")


def test_every_layer_has_room():
    integer = to_integer(made(lambda: build("resnet20")))
    layers = [step.module for step in integer.steps if isinstance(step.module, IntegerLayer)]
    assert isinstance(integer, Integer) and len(layers) == 22
    seen = []
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda layer, inputs: seen.append(
                layer.accumulate(inputs[0]).abs().max().item() / layer.accumulator_bound()
            )
        )
    integer(torch.randn(4, 3, 16, 16))
    assert len(seen) == 22 and max(seen) < 1


@pytest.mark.parametrize("network", [Tiny, Spellings])
@pytest.mark.parametrize("symmetric", [False, True])
def test_it_holds_the_calibrated_grids_and_torchs_integers(network, symmetric):
    """What reference and engine read from the same module, no comparison of the two can see."""
    config = QConfig(activation=Scheme(symmetric=symmetric, observer="minmax"), quantize_output=True)
    prepared, shift = made(network, config), 128 if symmetric else 0
    integer, x = to_integer(prepared), torch.randn(3, 3, 16, 16)
    modules, found = {step.name: step.module for step in integer.steps}, integer.integers(x)
    grids = {name: prepared.qparams(name) for name in prepared.activations}
    for name, grid in grids.items():
        own = modules["input"] if name == "input" else modules[name].output_grid
        assert (own.scale, own.zero_point) == (float(grid.scale), int(grid.zero_point) + shift), name
        assert (own.quant_min, own.quant_max) == (0, 255), name
    for name, observer in prepared.weights.items():
        layer, plain, grid = modules[name], prepared.graph_module.get_submodule(name), observer.qparams()
        weight = plain.weight.detach()
        theirs = torch.quantize_per_channel(weight, grid.scale, grid.zero_point, 0, torch.qint8)
        assert torch.equal(layer.weight, theirs.int_repr()), name
        unit = torch.tensor(layer.input_grid.scale) * grid.scale  # float32, as the kernels have it
        exact = [Fraction(b) / Fraction(u) for b, u in zip(plain.bias.tolist(), unit.tolist(), strict=True)]
        assert layer.bias.tolist() == [round(value) for value in exact], name
    for name, values, integers in (("input", x, found["input"]), ("fc", integer(x), found["fc"])):
        step = float(grids[name].scale), int(grids[name].zero_point) + shift
        if name == "input":
            assert torch.equal(torch.quantize_per_tensor(values, *step, torch.quint8).int_repr(), integers)
        else:
            theirs = torch._make_per_tensor_quantized_tensor(integers, *step).dequantize()
            assert torch.equal(values, theirs)


def test_no_image_and_images_that_do_not_fit():
    model = to_integer(made(Tiny))
    assert model(torch.zeros(0, 3, 16, 16)).shape == (0, *model(torch.zeros(1, 3, 16, 16)).shape[1:])
    for wrong in (torch.zeros(2, 1, 16, 16), torch.zeros(3, 16, 16)):
        with pytest.raises(ConfigError, match=r"Layer 'conv1' reads \(n, 3, h, w\), not"):
            model(wrong)
    grid = Grid(0.1, 3, 0, 255)
    layer = IntegerConv2d(
        torch.ones(2, 1, 3, 3, dtype=torch.int8), torch.zeros(2, dtype=torch.int32), torch.ones(2),
        name="few", input_grid=grid, output_grid=grid, geometry=Geometry([1, 1], [0, 0], [1, 1], 2),
    )  # fmt: skip
    assert layer(torch.zeros(1, 2, 3, 3, dtype=torch.uint8)).shape == (1, 2, 1, 1)
    with pytest.raises(ConfigError, match=r"kernel of \(3, 3\) is larger than its map of \(2, 2\)"):
        layer(torch.zeros(1, 2, 2, 2, dtype=torch.uint8))
    with pytest.raises(ConfigError, match=r"reads \(n, 2, h, w\)"):
        layer(torch.zeros(1, 3, 3, 3, dtype=torch.uint8))


def ends_in_a_mean(pool):
    """SqueezeNet's end: a convolution makes the classes, and their maps are averaged."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 10, 1), pool, nn.Flatten()
    ).eval()  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(7), nn.AdaptiveAvgPool2d((2, 3))])
def test_the_mean_of_accumulators_keeps_the_logits_apart(bits, pool):
    """Rounded to whole accumulators, 64 images at 2 bits had two different logits of a class."""
    x = torch.randn(64, 3, 16, 16)
    scheme = Scheme(bits, symmetric=True, per_channel=True, narrow_range=True)
    prepared = calibrate(prepare(ends_in_a_mean(pool), QConfig(scheme, Scheme(bits))), [x])
    reference = convert(prepared, "integer", engine="reference")
    (name, layer, _), (_, mean, _) = reference.steps[-4:-2]
    sums = reference.integers(x)[name].double()
    unit = (layer.input_grid.scale * layer.weight_scale).double()
    wanted = (pool(sums) * unit[:, None, None]).flatten(1)
    assert mean.fraction_bits >= 10
    apart = (reference(x) - wanted).abs().view(64, 10, -1).amax((0, 2))
    assert (apart <= 0.51 * unit * 2.0**-mean.fraction_bits + 1e-6).all()
    assert len(reference(x)[:, 0].unique()) > 30
    assert max(int(value.abs().max()) for value in reference.integers(x).values()) < 2**31


ROUNDED = {"float": [10, 8, 10, 12], "gemmlowp": [9, 8, 11, 12], "single_rounding": [10, 9, 11, 12]}
"""-0.5, -1.5, 0.5 and 1.5 by each rule, on a grid whose zero is 10."""


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_operator_rounds_as_it_is_told(rounding):
    read, made_of = Grid(0.5, 100, 0, 255), Grid(8.0, 10, 0, 255)  # an accumulator is worth 1 / 64 of a step
    q = uint8([68, 4, 132, 196])  # -32, -96, 32, 96
    layer = linear([1], input_grid=read, output_grid=made_of, rounding=rounding)
    assert layer(q[:, None]).flatten().tolist() == ROUNDED[rounding]
    conv = IntegerConv2d(
        torch.ones(1, 1, 1, 1, dtype=torch.int8), torch.zeros(1, dtype=torch.int32), torch.tensor([0.25]),
        name="conv", geometry=Geometry([1, 1], [0, 0], [1, 1], 1), input_grid=read, output_grid=made_of,
        rounding=rounding,
    )  # fmt: skip
    assert conv(q.view(1, 1, 2, 2)).flatten().tolist() == ROUNDED[rounding]
    coarse = Grid(32.0, 10, 0, 255)  # 64 steps of `read` in one
    joined = IntegerConcat(input_grids=[read, coarse], output_grid=coarse, rounding=rounding)
    assert joined(q[None], uint8([[7]])).tolist() == [[*ROUNDED[rounding], 7]]
    relu = IntegerReLU(input_grid=read, output_grid=coarse, rounding=rounding)
    assert relu(q[None]).tolist() == [[10, 10, *ROUNDED[rounding][2:]]]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_network_hands_its_rounding_to_every_operator(rounding):
    ends = [nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)]
    alone = [nn.ReLU(), nn.Conv2d(3, 2, 1), *ends]
    told = {}
    for network in (Spellings, lambda: nn.Sequential(*alone)):
        for step in to_integer(made(network), rounding).steps:
            if hasattr(step.module, "rounding"):
                told.setdefault(type(step.module).__name__, set()).add(step.module.rounding)
    assert told == dict.fromkeys(
        ("IntegerConv2d", "IntegerLinear", "IntegerAdd", "IntegerConcat", "IntegerReLU", "IntegerAvgPool2d",
         "IntegerAdaptiveAvgPool2d"), {rounding},
    )  # fmt: skip


def test_the_mean_of_the_largest_accumulators_fits_into_32_bits():
    conv = nn.Conv2d(512, 2, 3)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.bias.zero_()
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.ones(2, 512, 5, 5)
    reference = convert(calibrate(prepare(model, MINMAX), [x]), "integer", engine="reference")
    found, mean = reference.integers(x), reference.steps[2].module
    assert found["0"].unique().tolist() == [512 * 9 * 127 * 255] and mean.fraction_bits == 2
    assert found["1"].unique().tolist() == [512 * 9 * 127 * 255 * 4]  # a third bit would not fit
    assert torch.allclose(reference(x), model(x), rtol=1e-3)


def test_a_filter_of_zeros_has_a_ceiling_that_fits_into_32_bits():
    layer = IntegerLinear(
        torch.zeros(1, 2, dtype=torch.int8), torch.tensor([7], dtype=torch.int32), torch.tensor([1e-30]),
        name="fc", input_grid=HALF, output_grid=None, relu=True, ceiling=6.0,
    )  # fmt: skip
    assert layer.top.tolist() == [2**31 - 1] and layer(uint8([[1, 2]])).tolist() == [[7]]

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.quantization import kernels
from quantlib.quantization.affine import QParams, fake_quantize, qparams_from_range, quantize
from quantlib.quantization.kernels import (
    Geometry,
    as_uint8,
    fake_quantize_,
    int8_conv,
    int8_linear,
    pack_conv,
    pack_linear,
    quantize_uint8,
)


def fast(x, grid):
    unsigned = as_uint8(grid)
    inverse, zero = float(1.0 / unsigned.scale), int(unsigned.zero_point)
    return quantize_uint8(x, inverse, zero, unsigned.quant_min, unsigned.quant_max)


@settings(deadline=None, max_examples=60)
@given(
    low=st.floats(-100, 0, width=32),
    high=st.floats(0, 100, width=32),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    narrow=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_pieces_equal_the_formula(low, high, bits, symmetric, narrow, seed):
    grid = qparams_from_range(
        low, high, bits=bits, signed=symmetric, symmetric=symmetric, narrow_range=narrow
    )
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(7, 5, 3, 3, generator=generator) * (high - low + 1e-3)
    ties = (torch.randint(-300, 300, (64,), generator=generator) + 0.5) * grid.scale
    for values in (x, x.contiguous(memory_format=torch.channels_last), ties, x[:0]):
        q = fast(values, grid)
        assert torch.equal(q.int() + min(grid.quant_min, 0), quantize(values, grid).int())
        assert q.stride() == torch.empty_like(values).stride()
        wanted = fake_quantize(values, grid)
        assert torch.equal(fake_quantize_(values.clone(), grid), wanted)


def test_more_than_one_piece(monkeypatch):
    x = torch.randn(3, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    grid = qparams_from_range(-2.0, 3.0)
    monkeypatch.setattr(kernels, "PIECE", 64)
    assert torch.equal(fast(x, grid), quantize(x, grid))


def test_far_outside_the_range_is_clipped():
    x = torch.tensor([-1e30, 1e30, -3e38, 3e38, 1e-40])
    assert fast(x, qparams_from_range(0.0, 1.0)).tolist() == [0, 255, 0, 255, 0]


def test_signed_grids_shift_to_zero_point_128():
    grid = as_uint8(QParams(torch.tensor(0.1), torch.tensor(0), -128, 127))
    assert (int(grid.zero_point), grid.quant_min, grid.quant_max) == (128, 0, 255)
    narrow = as_uint8(QParams(torch.tensor(0.1), torch.tensor(0), -64, 63))
    assert (int(narrow.zero_point), narrow.quant_max) == (64, 127)


def test_a_view_with_gaps():
    x, grid = torch.randn(4, 6, 5, 5), qparams_from_range(-2.0, 3.0)
    for view in (x[:, ::2], x[:, :, 1:3], x[:1].expand(3, 6, 5, 5), x.transpose(1, 3), x[:, :, :, 0]):
        assert torch.equal(fast(view, grid), quantize(view, grid))


def test_without_onednn_float32_stands_in(monkeypatch):
    q = torch.randint(0, 256, (2, 8, 6, 6), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    weight = torch.randint(-127, 128, (4, 8, 3, 3), dtype=torch.int8)
    scale, zero, bias = torch.rand(4), torch.zeros(4, dtype=torch.int8), torch.randn(4)
    geometry, rows, other = (
        Geometry([1, 1], [1, 1], [1, 1], 1),
        q.permute(0, 2, 3, 1).reshape(-1, 8),
        torch.ones(72, 4),
    )

    def both():
        packed = pack_conv(weight, scale, geometry, q.shape)
        square = weight[:, :, 0, 0].contiguous()
        linear = int8_linear(rows, (0.02, 3), pack_linear(square, rows.shape), scale, zero, bias, True, other)
        return int8_conv(q, (0.02, 3), packed, scale, zero, bias, geometry, True), linear

    wanted = both()
    monkeypatch.setattr(kernels, "has_onednn", lambda: False)
    for ours, theirs in zip(both(), wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-3)

"""What every observer promises, and what each does beyond its oracle."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantlib.errors import ConfigError, NonFiniteError, NotCalibratedError
from quantlib.quantization.affine import QParams, fake_quantize
from quantlib.quantization.metrics import mse
from quantlib.quantization.observers import OBSERVERS, make_observer, optimal_clip
from quantlib.quantization.observers.base import flat
from quantlib.quantization.observers.fixed import FixedObserver

WATCHING = [name for name in OBSERVERS if name != "placeholder"]
PER_CHANNEL = ["minmax", "moving_average", "percentile", "mse", "recording"]


def data(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(*(shape or (4, 8, 5, 5)), generator=torch.Generator().manual_seed(seed))


def small(name: str, **options: Any) -> Any:
    """An observer with few enough bins to be quick."""
    return make_observer(name, **({"bins": 256} if name == "entropy" else {}), **options)


def adversarial() -> dict[str, Tensor]:
    x = data()
    outlier = x.clone()
    outlier[0, 0, 0, 0] = 400.0
    return {
        "normal": x,
        "relu": x.relu(),
        "constant": torch.full_like(x, 0.3),
        "negative constant": torch.full_like(x, -7.0),
        "zero": torch.zeros_like(x),
        "outlier": outlier,
        "denormal": (2 * x).round() * 1e-40,
        "huge": (2 * x).round() * 1e30,
        "nearly constant": 3 + x * 1e-7,
        "single value": x[:1, :1, :1, :1],
        "empty channels": x * (torch.arange(8) % 3 > 0).view(1, 8, 1, 1),
    }


@pytest.mark.parametrize("kind", adversarial())
@pytest.mark.parametrize("name", WATCHING)
def test_adversarial_tensors_get_a_usable_grid(name: str, kind: str) -> None:
    x = adversarial()[kind]
    for options in ({}, {"symmetric": True, "signed": True}, {"bits": 3}):
        observer = small(name, **options)
        assert observer(x) is x
        observer(x / 2)
        low, high = observer.range()
        assert low <= high and torch.isfinite(high - low)
        grid = observer.qparams()
        assert torch.isfinite(fake_quantize(x, grid)).all() and float(grid.scale) > 0
        assert fake_quantize(torch.zeros(1), grid).item() == 0


@pytest.mark.parametrize("name", PER_CHANNEL)
@pytest.mark.parametrize("kind", ["normal", "empty channels", "zero", "denormal", "outlier"])
def test_per_channel_ranges(name: str, kind: str) -> None:
    x = adversarial()[kind]
    for axis in (0, 1, -1):
        observer = make_observer(name, axis=axis)
        observer(x)
        grid = observer.qparams()
        assert grid.scale.shape == (x.shape[axis],) and torch.isfinite(fake_quantize(x, grid)).all()


@pytest.mark.parametrize("name", [name for name in WATCHING if name not in PER_CHANNEL])
def test_per_tensor_only(name: str) -> None:
    with pytest.raises(ConfigError, match="per tensor only"):
        make_observer(name, axis=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", WATCHING)
def test_non_finite_values_are_refused(name: str, bad: float) -> None:
    x = data()
    x[1, 2, 3, 4] = bad
    observer = small(name)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        observer(x)
    with pytest.raises(NotCalibratedError):  # nothing of the bad batch was kept
        observer.range()


@pytest.mark.parametrize("name", WATCHING)
def test_empty_and_integer_tensors_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="empty"):
        small(name)(torch.zeros(0, 3))
    with pytest.raises(ConfigError, match="floating-point"):
        small(name)(torch.zeros(3, dtype=torch.int32))


@pytest.mark.parametrize("name", OBSERVERS)
def test_nothing_observed_yet(name: str) -> None:
    observer = make_observer(name)
    for question in (observer.range, observer.qparams):
        with pytest.raises(NotCalibratedError):
            question()


@pytest.mark.parametrize("name", WATCHING)
def test_reset_forgets_and_data_is_left_alone(name: str) -> None:
    x, y = data(1), data(2) * 3
    before = y.clone()
    once, again = small(name), small(name)
    once(y)
    again(x)
    again.range()
    again.reset()
    with pytest.raises(NotCalibratedError):
        again.range()
    again(y)
    assert again.range() == once.range() and torch.equal(y, before)
    assert copy.deepcopy(once).range() == once.range()


@pytest.mark.parametrize("name", WATCHING)
def test_new_data_renews_the_range(name: str) -> None:
    observer = small(name, **({"momentum": 0.5} if name == "moving_average" else {}))
    observer(data(1))
    first = observer.range()
    observer(data(2) * 10)
    assert observer.range()[1] > first[1]


@pytest.mark.parametrize("name", WATCHING)
def test_half_precision_gradients_and_memory_layout(name: str) -> None:
    x = data().requires_grad_()
    one, two = small(name), small(name)
    (one(x) * 2).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.full_like(x, 2.0))
    two(x.detach().to(memory_format=torch.channels_last))
    assert torch.allclose(torch.stack(one.range()), torch.stack(two.range()), rtol=1e-6)
    assert make_observer("minmax")(x.detach().bfloat16()).dtype == torch.bfloat16


def test_flat_is_a_view_in_memory_order() -> None:
    x = data().to(memory_format=torch.channels_last)
    assert flat(x).data_ptr() == x.data_ptr() and torch.equal(flat(x).sort()[0], x.flatten().sort()[0])
    assert torch.equal(flat(x[:, ::2]).sort()[0], x[:, ::2].flatten().sort()[0])


def test_channels_may_not_change() -> None:
    observer = make_observer("minmax", axis=0)
    observer(data())
    with pytest.raises(ConfigError, match="4 channels"):
        observer(data(0, 5, 2))


def test_names_and_options() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'entropy'.*minmax, moving_average"):
        make_observer("entrpy")
    with pytest.raises(ConfigError, match="cannot be made"):
        make_observer("minmax", bitz=4)
    for name, options, words in (
        ("minmax", {"bits": 1}, "bits"),
        ("moving_average", {"momentum": 0}, "momentum"),
        ("percentile", {"percentile": 50}, "percentile must be"),
        ("percentile", {"bins": 1}, "bins must be"),
        ("entropy", {"levels": 4096}, "levels"),
        ("aciq", {"distribution": "cauchy"}, "distribution must be"),
        ("recording", {"limit": -1}, "limit"),
        ("mse", {"ratios": 0}, "ratios"),
        ("mse", {"sample": 0}, "sample"),
        ("histogram", {"bins": 0}, "bins"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            make_observer(name, **options)
        assert "cannot be made" not in str(caught.value)  # that would be an option of another name


def test_recording_keeps_copies_up_to_its_limit() -> None:
    observer = make_observer("recording", limit=2)
    x = data()
    for factor in (1, 2, 3):
        observer(x * factor)
    assert len(observer.recorded) == 2 and torch.equal(observer.recorded[1], x * 2)
    assert observer.range()[1] == x.max() * 3
    y = x.clone().requires_grad_()
    keeper = make_observer("recording")
    keeper(y)
    with torch.no_grad():
        y.zero_()
    assert torch.equal(keeper.recorded[0], x) and not keeper.recorded[0].requires_grad


def test_placeholder_carries_its_configuration() -> None:
    observer = make_observer("placeholder", bits=4, axis=0)
    x = torch.full((2,), float("nan"))
    assert observer(x) is x and (observer.bits, observer.axis) == (4, 0)


def test_percentile_leaves_out_what_it_says() -> None:
    x = data(0, 100_000)
    for symmetric in (False, True):
        observer = make_observer("percentile", percentile=99.0, symmetric=symmetric, signed=symmetric)
        observer(x)
        low, high = observer.range()
        assert 100 * ((x >= low) & (x <= high)).float().mean() == pytest.approx(99.0, abs=0.15)


def test_percentile_per_channel_is_exact() -> None:
    x = data(0, 6, 1000)
    observer = make_observer("percentile", percentile=98.0, axis=0)
    observer(x[:, :500])
    observer(x[:, 500:])
    want = torch.quantile(x, torch.tensor([0.01, 0.99]), dim=1)
    assert torch.allclose(torch.stack(observer.range()), want, atol=1e-6)


@pytest.mark.parametrize("bits, clip", [(2, 2.83), (3, 3.90), (4, 5.03), (8, 9.90)])
def test_aciq_laplace_hand_values(bits: int, clip: float) -> None:
    # Banner et al. print 3.86 at 3 bits; u * e^u = 192 has its root at 3.897.
    assert optimal_clip("laplace", bits) == pytest.approx(clip, abs=0.005)


@pytest.mark.parametrize("bits, clip", [(2, 1.71), (3, 2.15), (4, 2.56), (8, 3.92)])
def test_aciq_gauss_values(bits: int, clip: float) -> None:
    assert optimal_clip("gauss", bits) == pytest.approx(clip, abs=0.005)


@pytest.mark.parametrize("distribution", ["laplace", "gauss"])
@pytest.mark.parametrize("half", [False, True])
def test_aciq_is_optimal_on_its_own_distribution(distribution: str, half: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400_000, generator=g)
    if distribution == "laplace":
        x = x.sign() * torch.empty_like(x).exponential_(generator=g)
    x = x.relu() if half else x
    for bits in (4, 6):
        guess = make_observer("aciq", bits=bits, distribution=distribution)
        best = make_observer("mse", bits=bits)
        for part in x.chunk(4):
            guess(part)
            best(part)
        errors = [mse(x, fake_quantize(x, observer.qparams())) for observer in (guess, best)]
        # The formula counts 2**bits steps where the grid has one fewer.
        assert errors[0] < 1.1 * errors[1]


@given(
    st.integers(0, 1000), st.floats(2**-10, 1024, width=32), st.sampled_from(["minmax", "histogram", "mse"])
)
@settings(max_examples=30, deadline=None)
def test_ranges_scale_with_the_data(seed: int, factor: float, name: str) -> None:
    x = data(seed, 500)
    factor = 2.0 ** round(torch.tensor(factor).log2().item())  # a power of two scales floats exactly
    one, two = make_observer(name), make_observer(name)
    one(x)
    two(x * factor)
    assert torch.allclose(torch.stack(one.range()) * factor, torch.stack(two.range()), rtol=1e-5)


@pytest.mark.parametrize("name", WATCHING)
def test_bfloat16_is_observed_as_the_float32_of_the_same_value(name):
    """Whether an observer takes the short way for bfloat16 or a float32 copy, the range is the same."""
    rough = data(3).bfloat16()
    for axis in [None, 1] if name in PER_CHANNEL else [None]:
        observers = [small(name, axis=axis) for _ in range(2)]
        for x, observer in zip((rough, rough.float()), observers, strict=True):
            observer(x)
            observer(x / 2)
        short, long = (observer.range() for observer in observers)
        assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(short, long, strict=True))


@pytest.mark.parametrize("name", sorted(set(OBSERVERS) - {"placeholder"}))
@pytest.mark.parametrize("bits", [2, 4])
def test_one_calibration_serves_every_number_of_bits(name: str, bits: int) -> None:
    eight, few = make_observer(name), make_observer(name, bits=bits)
    for _ in range(3):
        x = torch.randn(2, 5, 8, 8).relu() * torch.rand(()) * 3
        eight(x)
        few(x)
    derived, wanted = eight.with_bits(bits).qparams(), few.qparams()
    assert torch.equal(derived.scale, wanted.scale) and torch.equal(derived.zero_point, wanted.zero_point)
    assert (derived.quant_min, derived.quant_max) == (0, 2**bits - 1)
    assert eight.bits == 8 and eight.qparams().quant_max == 255


@pytest.mark.parametrize("axis", [None, 0])
def test_a_settled_observer_keeps_its_range_and_nothing_else(axis: int | None) -> None:
    observer, x = make_observer("mse", bits=3, symmetric=True, signed=True, axis=axis), torch.randn(4, 90)
    observer(x)
    low, high = observer.settle().range()
    again = make_observer("mse", bits=3, symmetric=True, signed=True, axis=axis)
    again(x)
    assert torch.equal(low, again.range()[0]) and torch.equal(high, again.range()[1])
    assert observer.kept == [] and observer.histogram is None
    assert observer.with_bits(3).range()[0] is low
    for again in (lambda: observer(x), lambda: observer.with_bits(4)):
        with pytest.raises(ConfigError, match="has settled on its range"):
            again()
    assert observer.range()[0] is low  # a refused batch costs nothing
    observer.reset()
    observer(x)


@pytest.mark.parametrize("name", ["histogram", "entropy", "percentile"])
def test_a_settled_observer_lets_its_histogram_go(name: str) -> None:
    observer, x = make_observer(name), torch.randn(500)
    observer(x)
    low = observer.range()[0]
    assert observer.settle().range()[0] is low and observer.histogram is None


def test_a_vector_has_no_channels() -> None:
    with pytest.raises(ConfigError, match="no channels on axis 0; take axis=None"):
        make_observer("minmax", axis=0)(torch.randn(5))


def test_a_fixed_observer_knows_the_ends_of_its_own_grid() -> None:
    grid = QParams(torch.tensor(0.5), torch.tensor(128), 121, 135)
    fixed = FixedObserver(grid, make_observer("minmax", bits=4))
    assert [float(end) for end in fixed.range()] == [-3.5, 3.5]
    fixed.to("meta")
    assert fixed.qparams().scale.device.type == "meta"


@pytest.mark.parametrize("name", ["entropy", "percentile"])
@pytest.mark.parametrize("first", [1e-6, 1e-42])
def test_a_nearly_dead_first_batch_does_not_ask_for_all_memory(name: str, first: float) -> None:
    observer = make_observer(name)
    observer(torch.full((8,), first))
    with pytest.raises(ConfigError, match="calibrate on larger batches"):
        observer(torch.full((8,), 1e4))


def test_zeros_before_small_values_do_not_fix_the_width_of_the_bins():
    """A first batch of zeros is drawn over -0.5..0.5; what comes later may be a thousand times smaller."""
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 1e-4
    for symmetric in (True, False):
        late, alone = (make_observer("percentile", symmetric=symmetric) for _ in range(2))
        late(torch.zeros(100))
        late(values)
        alone(values)
        low, high = late.range()
        assert high == pytest.approx(float(alone.range()[1]), rel=0.05) and high > 0


FEW = {2: 2.8307, 3: 3.8971}
"""Where u * e^u is 3 * 4^bits."""


def test_aciq_by_hand() -> None:
    def found(x: list[float], **scheme: Any) -> list[float]:
        observer = make_observer("aciq", **{"bits": 2, **scheme})
        observer(torch.tensor(x))
        return [float(end) for end in observer.range()]

    both = {"symmetric": True, "signed": True}
    shifted = [-100.0, *[3.0] * 98, 100.0]  # mean 2.94, mean deviation 3.94...
    width = (102.94 + 98 * 0.06 + 97.06) / 100
    assert found(shifted) == pytest.approx([2.94 - FEW[2] * width, 2.94 + FEW[2] * width], abs=1e-2)
    width = (200 + 98 * 3) / 100  # ... and mean magnitude 4.94, around 0
    assert found(shifted, **both) == pytest.approx([-FEW[2] * width, FEW[2] * width], abs=1e-2)
    rectified = [*[0.0] * 50, *[1.0] * 49, 100.0]  # zeros do not count: the mean is 2.98
    assert found(rectified) == pytest.approx([0, FEW[3] * 2.98], abs=1e-2)
    assert found(rectified, **both)[1] == pytest.approx(FEW[2] * 2.98, abs=1e-2)  # half the steps
    assert found([-3.0, -1.0, 1.0, 3.0]) == [-3.0, 3.0]  # 5.66 would be beyond what there is
    assert found([1.0, 2.0, 3.0], bits=8) == [0.0, 3.0]


def test_percentile_per_channel_of_a_symmetric_scheme_cuts_magnitudes() -> None:
    x = data(0, 6, 1000) + 1
    observer = make_observer("percentile", percentile=98.0, symmetric=True, signed=True, axis=0)
    observer(x)
    want = torch.quantile(x.abs(), 0.98, dim=1)
    assert torch.allclose(torch.stack(observer.range()), torch.stack([-want, want]), atol=1e-6)

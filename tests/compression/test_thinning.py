"""Thinned networks against the same network with those channels silenced, and counts against torch's own."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from quantlib.compression.channels import FIXED, find_channels
from quantlib.compression.costs import macs
from quantlib.compression.thinning import choose_filters, filter_scores, remove_channels, thin
from quantlib.errors import ConfigError, NonFiniteError, UnsupportedOperatorError
from quantlib.quantization.graph import BATCH_NORMS, fuse
from quantlib.subject.models import build
from quantlib.subject.zoo import random_network
from tests.quantization.networks import Excited, InPlaceShortcut, Spellings, Tiny, randomize

pytestmark = pytest.mark.usefixtures("one_thread")


class Dense(nn.Module):
    """Concatenation before a batch norm, depthwise and grouped convolutions, a batch norm after flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.join = nn.BatchNorm2d(24)
        self.grouped = nn.Conv2d(24, 12, 1, groups=3, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.flat = nn.BatchNorm1d(48)
        self.hidden = nn.Linear(48, 20)
        self.fc = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([x, F.relu(self.deep(x))], 1)
        x = F.adaptive_avg_pool2d(F.relu(self.bn(self.grouped(F.relu(self.join(x))))), 2)
        x = self.flat(torch.flatten(x, 1))
        return self.fc(F.relu(self.hidden(x)))


def silenced(model: nn.Module, gone: set[int]) -> nn.Module:
    """The model with the channels in `gone` zero wherever they are made or normalized."""
    channels = find_channels(model)
    muted = copy.deepcopy(model)
    for name, module in muted.named_modules():
        numbers = channels.reads.get(name) if isinstance(module, BATCH_NORMS) else channels.makes.get(name)
        if numbers is None:
            continue
        dead = torch.from_numpy(np.isin(numbers, sorted(gone)))
        for values in (module.weight, module.bias):
            if values is not None:
                values.data[dead] = 0.0
    return muted


def examples() -> dict[str, tuple[nn.Module, Tensor]]:
    def noise(*shape: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng(0).standard_normal((2, *shape))).float()

    torch.manual_seed(0)
    made = {
        "tiny": (randomize(Tiny()), noise(3, 8, 8)),
        "spellings": (Spellings().eval(), noise(3, 16, 16)),
        "in_place": (InPlaceShortcut().eval(), noise(3, 8, 8)),
        "dense": (randomize(Dense()), noise(3, 8, 8)),
        "resnet20": (randomize(build("resnet20")), noise(3, 16, 16)),
        "squeezenet": (randomize(build("squeezenet")), noise(3, 16, 16)),
        "fused": (fuse(randomize(Tiny())), noise(3, 8, 8)),
    }
    return made | {name: random_network(name, images=2, side=32) for name in ("googlenet", "mobilenet_v2")}


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    return examples()


NAMES = ("tiny", "spellings", "in_place", "dense", "resnet20", "squeezenet", "fused", "googlenet",
         "mobilenet_v2")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_thinned_is_the_network_with_those_channels_silent(networks, name: str) -> None:
    model, x = networks[name]
    channels = find_channels(model)
    gone = choose_filters(model, channels, 0.5)
    thinned = remove_channels(model, channels, gone)
    with torch.no_grad():
        wanted, found = silenced(model, gone)(x), thinned(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    before, after = macs(model, x), macs(thinned, x)
    if name == "in_place":  # every channel is one of the result's
        assert after == before
    elif name in ("spellings", "dense"):  # additions, shared calls and groups tie most channels
        assert after.parameters < before.parameters
    else:
        assert after.macs < 0.75 * before.macs and after.parameters < 0.8 * before.parameters
    assert [key for key, _ in thinned.named_parameters()] == [key for key, _ in model.named_parameters()]


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.95))
def test_any_choice_of_channels_is_exact(seed: int, share: float) -> None:
    torch.manual_seed(0)
    model, x = randomize(Dense()), torch.randn(2, 3, 8, 8)
    channels = find_channels(model)
    rng = np.random.default_rng(seed)
    gone = set()
    for numbers in channels.bundles().values():
        gone |= set(rng.permutation(numbers)[: min(int(share * len(numbers)), len(numbers) - 1)].tolist())
    with torch.no_grad():
        torch.testing.assert_close(remove_channels(model, channels, gone)(x), silenced(model, gone)(x))


def test_the_original_is_left_alone_and_nothing_removed_is_the_same() -> None:
    model, x = randomize(Tiny()), torch.randn(2, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    thin(model, 0.5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(thin(model, 0.0)(x), model(x))


def test_a_residual_stage_is_one_bundle() -> None:
    bundles = find_channels(build("resnet20").eval()).bundles()
    stage = ("layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2", "layer2.2.conv2")
    assert any(set(names) == set(stage) and len(numbers) == 32 for names, numbers in bundles.items())
    assert ("layer2.1.conv1",) in bundles and not any("fc" in names for names in bundles)


def test_scores_by_hand() -> None:
    conv, norm = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2, eps=0)
    model = nn.Sequential(conv, norm, nn.Conv2d(2, 1, 1)).eval()
    conv.weight.data = torch.tensor([3.0, -1.0]).view(2, 1, 1, 1)
    norm.weight.data, norm.running_var = torch.tensor([-1.0, 2.0]), torch.tensor([4.0, 1.0])
    channels = find_channels(model)
    first, second = channels.makes["0"].tolist()
    scores = filter_scores(model, channels)  # 3 * 1/2 = 1.5 and 1 * 2 = 2, mean 1.75
    assert [scores[first], scores[second]] == pytest.approx([1.5 / 1.75, 2 / 1.75])
    assert choose_filters(model, channels, 0.5) == {first}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("share, multiple", [(0.3, 1), (0.5, 4), (0.99, 8)])
def test_shares_multiples_and_what_always_stays(scope: str, share: float, multiple: int) -> None:
    model = build("resnet20").eval()
    channels = find_channels(model)
    gone = choose_filters(model, channels, share, scope, multiple)
    assert FIXED not in gone
    for numbers in channels.bundles().values():
        kept = len(numbers) - len(gone & set(numbers.tolist()))
        assert kept >= 1 and kept % multiple == 0
        if scope == "layer":
            assert kept == max(-(-(len(numbers) - int(share * len(numbers))) // multiple), 1) * multiple


@pytest.mark.parametrize("name", ["resnet20", "squeezenet", "mobilenet_v2"])
def test_macs_are_half_of_what_torch_counts_as_flops(networks, name: str) -> None:
    model, x = networks[name]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x[:1])
    found = macs(model, x[0])
    assert found.macs == counter.get_total_flops() // 2 == macs(model, x).macs
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.macs == sum(found.by_layer.values())


def test_macs_leave_train_mode_and_batch_norm_statistics_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    assert macs(model, torch.ones(3, 5, 5)).macs == 300
    assert model.training and model[1].training and int(model[1].num_batches_tracked) == 0


def test_published_counts() -> None:
    found = macs(build("resnet50").eval(), torch.zeros(3, 32, 32))
    assert found.parameters == 23_520_842 and round(found.macs / 1e9, 1) == 1.3
    assert round(macs(build("resnet20").eval(), torch.zeros(3, 32, 32)).macs / 1e6) == 41


class Reshaped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), x], 1)


def test_what_is_not_understood_is_named() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"sigmoid|gate.*block"):
        find_channels(Excited().eval())
    with pytest.raises(UnsupportedOperatorError, match="cat.*several channels"):
        find_channels(Reshaped().eval())
    with pytest.raises(ConfigError, match="train mode"):
        thin(Tiny(), 0.5)
    with pytest.raises(ConfigError, match="share is 1"):
        thin(Tiny().eval(), 1.0)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_filters_that_are_not_finite_are_named(scope):
    model = build("resnet20").eval()
    with torch.no_grad():
        model.layer1[0].conv1.weight[0] = torch.nan
    with pytest.raises(NonFiniteError, match="layer1.0.conv1"):
        thin(model, 0.5, scope)
    with pytest.raises(ConfigError, match="a multiple of at least 1"):
        thin(build("resnet20").eval(), 0.5, multiple=0)

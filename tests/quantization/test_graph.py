import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from quantlib.errors import ConfigError, UnsupportedOperatorError
from quantlib.quantization.fused import Concat, FusedAdd, FusedConv2d
from quantlib.quantization.graph import fold_batch_norm, fuse, kind, trace, unsupported
from quantlib.subject.models import build
from tests.quantization.networks import Block, Excited, InPlaceShortcut, Spellings, Tiny, randomize

MODELS = {
    "tiny": (Tiny, 16),
    "spellings": (Spellings, 16),
    "in_place": (InPlaceShortcut, 8),
    "resnet20": (lambda: build("resnet20"), 32),
    "squeezenet": (lambda: build("squeezenet"), 32),
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), 64),
    "vgg11_bn": (lambda: _without_classifier(torchvision.models.vgg11_bn(weights=None)), 32),
    "squeezenet1_1": (lambda: torchvision.models.squeezenet1_1(weights=None), 64),
    "googlenet": (lambda: torchvision.models.googlenet(aux_logits=False, init_weights=False), 64),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(weights=None), 64),
}


def _without_classifier(vgg):
    """The 120 M parameters of VGG's head prove nothing that a small one does not."""
    vgg.classifier = nn.Sequential(nn.Linear(512 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 10))
    return vgg


@pytest.fixture(params=MODELS)
def network(request):
    torch.manual_seed(0)
    make, size = MODELS[request.param]
    return randomize(make()).double(), torch.randn(2, 3, size, size, dtype=torch.float64)


@torch.no_grad()
def test_fold_and_fuse_keep_the_function(network):
    model, x = network
    wanted = model(x)
    for changed in (fold_batch_norm(model), fuse(model), fuse(model, relu=False), fuse(fuse(model))):
        assert torch.allclose(changed(x), wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max())


def test_everything_is_a_canonical_module_and_batch_norm_is_gone(network):
    model, _ = network
    fused = fuse(model)
    assert all(kind(node) for node in fused.graph.nodes if node.op not in ("placeholder", "output"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    names = [node.target for node in fused.graph.nodes if node.op == "call_module"]
    assert len(names) == len(set(names)), "an operator shares its module, so it would share its observer"
    assert unsupported(model) == []


def test_layers_keep_their_names_and_additions_get_one():
    fused = fuse(build("resnet20").eval())
    layers = [n.target for n in fused.graph.nodes if kind(n) in ("conv", "linear")]
    expected = [n for n, m in build("resnet20").named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sorted(layers) == sorted(expected)
    assert fused.get_submodule("layer1.0.add").relu


def test_relu_is_fused_into_conv_and_add_or_left_alone():
    fused, apart = fuse(randomize(Tiny())), fuse(randomize(Tiny()), relu=False)
    assert [n.target for n in fused.graph.nodes if kind(n) == "relu"] == []
    assert [n.target for n in apart.graph.nodes if kind(n) == "relu"] == ["relu", "relu_1", "relu_2"]
    assert fused.conv1.relu and fused.add.relu and not fused.conv3.relu and not apart.conv1.relu
    assert isinstance(fused.conv1, FusedConv2d) and isinstance(fused.add, FusedAdd)


def test_relu6_becomes_a_ceiling():
    fused = fuse(Spellings().eval())
    assert fused.get_submodule("left_1").ceiling == 6.0 and fused.get_submodule("right").ceiling is None


def test_fold_keeps_relu_and_unfoldable_batch_norms():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(torch.relu(self.conv(x)))

    folded = fold_batch_norm(Late().eval())
    assert isinstance(folded.bn, nn.BatchNorm2d)
    with pytest.raises(UnsupportedOperatorError, match=r"bn \(BatchNorm2d\) at bn"):
        fuse(Late().eval())


def test_a_shared_convolution_is_not_folded_twice():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.b(self.conv(self.a(self.conv(x))))

    model, x = randomize(Shared()).double(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for changed in (fold_batch_norm(model), fuse(model)):
        assert torch.allclose(changed(x), model(x), atol=1e-12)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fuse(model).modules())


def test_the_model_is_never_changed():
    model = randomize(Tiny())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = fuse(model)
    with torch.no_grad():
        fused.conv1.weight.zero_()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert isinstance(model.bn1, nn.BatchNorm2d)


def test_every_unsupported_operator_is_listed_with_its_place():
    found = unsupported(Excited().eval())
    assert found == [
        "block_gate (Sigmoid) at block.gate",
        "mul (mul) at block",
    ]
    with pytest.raises(UnsupportedOperatorError, match=r"Sigmoid\) at block.gate.*mul\) at block"):
        fuse(Excited().eval())


def test_unsupported_operators_can_stay_in_float():
    model, x = Excited().eval(), torch.randn(2, 3, 8, 8)
    assert torch.allclose(fuse(model, unsupported="float")(x), model(x), atol=1e-6)
    with pytest.raises(ConfigError, match="'error' or 'float'"):
        fuse(model, unsupported="ignore")


@pytest.mark.parametrize(
    "odd",
    [
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 3, 2, padding="same"),
        nn.MaxPool2d(2, return_indices=True),
        nn.ConvTranspose2d(3, 3, 2),
        nn.Flatten(0),
    ],
)
def test_what_looks_alike_but_is_not_supported(odd):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = odd

        def forward(self, x):
            return self.odd(x)

    assert unsupported(Odd().eval()) == [f"odd ({type(odd).__name__}) at odd"]


def test_a_parameter_among_the_summands_is_no_image():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.shift = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(4, 1, 1))

        def forward(self, x):
            return torch.relu(self.conv(x) + self.shift)

    model, x = Shifted().eval(), torch.randn(2, 3, 8, 8)
    assert unsupported(model) == ["shift (a tensor of the model's own) at shift"]
    with pytest.raises(UnsupportedOperatorError, match="own\\) at shift: replace them"):
        fuse(model)
    assert torch.allclose(fuse(model, unsupported="float")(x), model(x), atol=1e-6)


def test_untraceable_and_train_mode_are_refused():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedOperatorError, match="cannot trace Branches"):
        trace(Branches().eval())
    with pytest.raises(ConfigError, match=r"call model.eval\(\) first"):
        trace(Tiny())
    half = Tiny().eval()
    half.bn1.train()
    with pytest.raises(ConfigError, match="train mode"):
        fuse(half)


def test_a_block_inside_keeps_its_scope_in_names():
    names = [n.target for n in fuse(nn.Sequential(Block()).eval(), unsupported="float").graph.nodes]
    assert "0.conv" in names and "0.pool" in names


def test_a_module_called_by_keyword_is_like_any_other():
    class Named(Tiny):
        def forward(self, x):
            x = self.pool(input=self.relu(self.bn1(self.conv1(input=x))))
            return self.fc(self.conv2(x).mean((2, 3)))

    model, x = randomize(Named()), torch.randn(2, 3, 16, 16)
    assert unsupported(model) == []
    graph = fuse(model)
    assert torch.allclose(graph(x), model(x), atol=1e-5)
    assert all(not node.kwargs for node in graph.graph.nodes if node.op == "call_module")


class NumpySpellings(nn.Module):
    """torch.cat and mean take numpy's names of their arguments as well."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)

    def forward(self, x):
        joined = torch.cat([self.left(x), self.right(x)], axis=1)
        return joined.mean(axis=(2, 3), keepdims=True)


def test_numpys_names_of_arguments_mean_the_same():
    model, x = NumpySpellings().eval().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = fuse(model)(x)
    assert found.shape == (2, 9, 1, 1)
    torch.testing.assert_close(found, model(x))


def test_a_keyword_that_is_not_understood_is_not_left_out():
    class Rounded(nn.Module):
        def forward(self, x):
            return x.mean((2, 3), dtype=torch.float16)

    assert unsupported(Rounded().eval())


def test_a_batch_norm_is_not_folded_through_a_relu_inside_a_layer():
    """relu(conv(x)) of a fused graph, then a norm: gain and shift belong behind the ReLU."""
    inner = fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()).get_submodule("0")
    model = randomize(nn.Sequential(inner, nn.BatchNorm2d(4)))
    assert inner.relu
    with pytest.raises(UnsupportedOperatorError):
        fuse(model)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(fold_batch_norm(model)(x), model(x))


class Twice(nn.Module):
    """A fused layer that is called twice, once before a ReLU."""

    def __init__(self):
        super().__init__()
        self.c = fuse(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)).eval()).get_submodule("0")

    def forward(self, x):
        return self.c(torch.relu(self.c(x)))


def test_a_fused_layer_that_is_called_twice_has_a_relu_for_each_call():
    model, x = Twice().eval(), torch.randn(2, 3, 8, 8)
    fused = fuse(model)
    assert torch.allclose(fused(x), model(x), atol=1e-6)
    first, second = fused.get_submodule("c"), fused.get_submodule("c_1")
    assert (first.relu, second.relu) == (True, False) and first.weight is second.weight


class Drops(nn.Module):
    """F.dropout with and without a word about training."""

    def __init__(self, said):
        super().__init__()
        self.conv, self.said = nn.Conv2d(3, 3, 1), said

    def forward(self, x):
        x = self.conv(x)
        return F.dropout(x, 0.5, training=self.training) if self.said else F.dropout(x, 0.5)


def test_a_dropout_that_drops_in_eval_mode_too_is_not_left_out():
    assert unsupported(Drops(True).eval()) == []
    with pytest.raises(UnsupportedOperatorError, match="dropout"):
        fuse(Drops(False).eval())


class Joined(nn.Module):
    def forward(self, x):
        return torch.cat([x, x])


def test_images_are_not_joined_along_the_batch():
    with pytest.raises(UnsupportedOperatorError, match="cat"):
        fuse(nn.Sequential(nn.Conv2d(3, 3, 1), Joined()).eval())


class Overwriting(nn.Module):
    """Changes a tensor in place, as a statement whose result nobody reads."""

    def __init__(self, change):
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.relu, self.change = nn.ReLU(inplace=True), change

    def forward(self, x):
        x = self.bn(self.conv(x))
        self.change(self, x)
        return self.last(x)


def test_a_statement_that_overwrites_is_part_of_the_network():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = Overwriting(lambda self, x: self.relu(x)).eval()
    for make in (fuse, fold_batch_norm):
        torch.testing.assert_close(make(model)(x), model(x), rtol=1e-4, atol=1e-5)
    for change, name in (
        (lambda self, x: x.clamp_(-0.1, 0.1), "clamp_"),
        (lambda self, x: x.mul_(2.0), "mul_"),
        (lambda self, x: F.leaky_relu_(x, 0.1), "leaky_relu_"),
        (lambda self, x: x.sigmoid_(), "sigmoid_"),
    ):
        model = Overwriting(change).eval()
        with pytest.raises(UnsupportedOperatorError, match=name):
            fuse(model)
        torch.testing.assert_close(fuse(model, unsupported="float")(x), model(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fold_batch_norm(model)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change", [lambda self, x: x[:, :2].mul_(3), lambda self, x: self.relu(x.flatten(1))]
)
def test_a_change_under_another_name_is_refused(change):
    """x[:, :2] and a flattened x are x: the graph does not show who reads what was changed."""
    for make in (fuse, lambda model: fuse(model, unsupported="float"), fold_batch_norm):
        with pytest.raises(UnsupportedOperatorError, match="in place, and its result is not read; assign it"):
            make(Overwriting(change).eval())


def test_a_norm_over_another_axis_than_the_outputs_is_not_folded_silently():
    class Sequence(nn.Module):
        def __init__(self, out):
            super().__init__()
            self.linear, self.bn = nn.Linear(5, out), nn.BatchNorm1d(6)

        def forward(self, x):
            return self.bn(self.linear(x))

    x = torch.randn(2, 6, 5)
    with pytest.raises(UnsupportedOperatorError, match="BatchNorm1d"):
        fuse(Sequence(7).eval())
    with pytest.raises(UnsupportedOperatorError, match=r"for inputs \(n, features\) only"):
        fuse(Sequence(6).eval())(x)  # six places of six features: only the input tells


def test_weights_made_by_hooks_are_refused_in_a_sentence():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(UnsupportedOperatorError, match="prune.remove"):
        fuse(model.eval())
    prune.remove(model[0], "weight")
    assert fuse(model.eval())
    odd = nn.ModuleDict({"in": nn.Conv2d(3, 4, 3)})
    odd.forward = lambda x: odd["in"](x)
    with pytest.raises(UnsupportedOperatorError, match="no name in Python"):
        fuse(odd.eval())


@pytest.mark.parametrize("dim, shape", [(-2, (20, 3)), (-3, (20, 3, 4))])
def test_tensors_joined_along_the_batch_are_refused(dim, shape):
    with pytest.raises(UnsupportedOperatorError, match="along the batch"):
        Concat(dim)(torch.zeros(shape), torch.zeros(shape))

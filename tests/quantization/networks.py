"""Small networks for the tests: every spelling of the operators that quantlib knows, and some it does not."""

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from quantlib.quantization.graph import kind, module_of
from quantlib.quantization.sites import site_name, source


def randomize(model: nn.Module) -> nn.Module:
    """Batch-norm statistics as after training, so that folding has something to fold."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


class Tiny(nn.Module):
    """Conv+BN+ReLU, a residual block with a shortcut convolution, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2)
        self.conv3 = nn.Conv2d(16, 16, 3, padding="same")
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + self.shortcut(x))
        y = self.conv3(x)
        y += x
        x = self.pool(self.relu(y))
        return self.fc(x.mean((2, 3)))


class Spellings(nn.Module):
    """The same operators as functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.left = nn.Conv2d(6, 6, 1)
        self.right = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.fc = nn.Linear(12 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = torch.add(x, self.left(x)).relu_()
        x = torch.cat([F.relu6(self.left(x)), torch.relu(self.right(x))], dim=1)
        x = F.dropout(F.avg_pool2d(x, 2), 0.5, self.training)
        return self.fc(x.view(x.size(0), -1))


class InPlaceShortcut(nn.Module):
    """The in-place ReLU changes the tensor that the shortcut reads later."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        y = self.conv2(self.relu(x))
        return x + y


class Block(nn.Module):
    """Squeeze and excite: a product, which has no integer form here."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.gate(x.mean((2, 3), keepdim=True))


class Excited(nn.Module):
    """A network with operators that are not supported."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = Block()
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.head(self.block(F.relu(self.stem(x)))).mean((2, 3)), 1)


class AtInputs(fx.Interpreter):
    """The fused network with torch's fake quantization at the inputs and weights of conv and linear alone."""

    def __init__(self, prepared):
        super().__init__(prepared.graph_module)
        self.prepared = prepared

    def run_node(self, n):
        if kind(n) not in ("conv", "linear"):
            return super().run_node(n)
        layer, grid = module_of(n), self.prepared.qparams(site_name(source(n.args[0])))
        weight = self.prepared.weights[n.target].qparams()
        (x,) = self.fetch_args_kwargs_from_env(n)[0]
        x = torch.fake_quantize_per_tensor_affine(
            x, float(grid.scale), int(grid.zero_point), grid.quant_min, grid.quant_max
        )
        w = torch.fake_quantize_per_channel_affine(
            layer.weight, weight.scale, weight.zero_point, 0, weight.quant_min, weight.quant_max
        )
        if kind(n) == "linear":
            return layer.rectified(F.linear(x, w, layer.bias))
        y = F.conv2d(x, w, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        return layer.rectified(y)

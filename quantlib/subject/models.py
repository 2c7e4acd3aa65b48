"""The three networks of the course, each small enough to read and traceable by torch.fx."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet50 as torchvision_resnet50

from quantlib.errors import ConfigError
from quantlib.subject.data import CLASSES


def resnet50() -> nn.Module:
    """Build ResNet-50 for 32x32 images: a 3x3 stride-1 stem and no max pool.

    Shapes: (n, 3, 32, 32) float32 to (n, 10) logits; 23,520,842 parameters, 1.3 GMAC an image.
    The first block of each stage halves the map from stage two on: 32, 16, 8, 4.
    The last batch norm of every bottleneck starts with a zero gain, so that training starts from
    a shallow network. Source: He et al. 2016; torchvision's layer names. Introduced in notebook 01.
    """
    model = torchvision_resnet50(num_classes=len(CLASSES), zero_init_residual=True)
    model.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, added before the last ReLU."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of images or feature maps to the next one."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR: three stages of three basic blocks, 16, 32 and 64 channels.

    Shapes: (n, 3, 32, 32) float32 to (n, 10) logits; 272,474 parameters, 41 MMAC an image.
    The shortcut is a 1x1 convolution where the width changes (the paper's option B), because the
    padding of option A has no integer kernel. Source: He et al. 2016. Introduced in notebook 01.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, stride=1)
        self.layer2 = self._stage(16, 32, stride=2)
        self.layer3 = self._stage(32, 64, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, len(CLASSES))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(width_in: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(width_in, width, stride), BasicBlock(width, width, 1), BasicBlock(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of images or feature maps to the next one."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Fire(nn.Module):
    """Squeeze to few channels by 1x1, then expand by 1x1 and 3x3 side by side.

    `squeeze` 0 leaves the squeeze out, `expand1x1` 0 makes all filters 3x3: SqueezeNet without a strategy.
    Introduced in notebook 16.
    """

    def __init__(self, width_in: int, squeeze: int, expand1x1: int, expand3x3: int) -> None:
        super().__init__()
        width, self.parts = squeeze or width_in, (squeeze > 0, expand1x1 > 0)
        if squeeze:
            self.squeeze = nn.Conv2d(width_in, squeeze, 1, bias=False)
            self.squeeze_bn = nn.BatchNorm2d(squeeze)
        if expand1x1:
            self.expand1x1 = nn.Conv2d(width, expand1x1, 1, bias=False)
            self.expand1x1_bn = nn.BatchNorm2d(expand1x1)
        self.expand3x3 = nn.Conv2d(width, expand3x3, 3, padding=1, bias=False)
        self.expand3x3_bn = nn.BatchNorm2d(expand3x3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of images or feature maps to the next one."""
        squeezed, split = self.parts
        x = self.relu(self.squeeze_bn(self.squeeze(x))) if squeezed else x
        right = self.relu(self.expand3x3_bn(self.expand3x3(x)))
        if not split:
            return right
        left = self.relu(self.expand1x1_bn(self.expand1x1(x)))
        return torch.cat([left, right], 1)


FIRES = ((16, 128), (16, 128), (32, 256), (32, 256), (48, 384), (48, 384), (64, 512), (64, 512))
"""Channels that each fire module of SqueezeNet squeezes to, and those that it puts out."""


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 for 32x32 images: the model zoo's fire modules and names, a stride-1 stem.

    Shapes: (n, 3, 32, 32) float32 to (n, 10) logits; 0.73 M parameters. Batch norms follow every
    convolution, because the network does not train well on CIFAR-10 without them; folding removes
    them again. Each of its three strategies can be left out: `one_by_one` (half of a fire's filters are
    1x1, not 3x3), `squeeze` (few channels enter the 3x3 filters), `late` (both poolings come two fires
    later). Source: Iandola et al. 2016; torchvision's layout. Introduced in notebook 16.
    """

    def __init__(self, one_by_one: bool = True, squeeze: bool = True, late: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        ]  # fmt: skip
        pools, width = ((2, 4) if late else (0, 2)), 64
        for place, (few, out) in enumerate(FIRES):
            if place in pools:
                layers.append(nn.MaxPool2d(2))
            pointwise = out // 2 if one_by_one else 0
            layers.append(Fire(width, few if squeeze else 0, pointwise, out - pointwise))
            width = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(width, len(CLASSES), 1), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of images or feature maps to the next one."""
        return torch.flatten(self.classifier(self.features(x)), 1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": resnet50,
    "resnet20": ResNet20,
    "squeezenet": SqueezeNet,
}
"""How each network is built, by name."""


def build(name: str) -> nn.Module:
    """Build an untrained network by its name: resnet50, resnet20 or squeezenet.

    Raises ConfigError for an unknown name. Introduced in notebook 01.
    """
    if name not in MODELS:
        raise ConfigError(f"there is no model named {name!r}; choose one of {', '.join(sorted(MODELS))}")
    return MODELS[name]()

"""torchvision's classics with random weights: networks nobody here wrote, to try the library on."""

import torch
import torchvision
from torch import Tensor, nn

ZOO = ("resnet18", "vgg11_bn", "squeezenet1_1", "googlenet", "mobilenet_v2")
"""Networks of torchvision that quantlib can quantize."""


def random_network(name: str, images: int = 8, side: int = 64, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network of torchvision's with random weights, ten classes, in eval mode; and normal noise to feed it.

    Batch norms are those of `calm`, and learn their statistics from the images.
    Images: float32 (images, 3, side, side). Introduced in notebook 08.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, num_classes=10, **options)
        calm(model)
        x = torch.randn(images, 3, side, side)
        with torch.no_grad():
            model.train()(x)
    return model.eval(), x


def calm(model: nn.Module) -> None:
    """Make the batch norms of an untrained network fit to be quantized; run it once in train mode afterwards.

    Their biases become positive, so that few values die in a ReLU: with biases of 0 a deep random network
    makes 30 dB more of any disturbance, in float32 too. Introduced in notebook 08.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of what has been seen, not of the beginning
            nn.init.normal_(module.bias, 3.0, 0.5)

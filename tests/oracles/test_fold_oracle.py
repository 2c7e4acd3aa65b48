"""Folding against torch's own, bit for bit, and on the trained network."""

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from quantlib.quantization.graph import fold_batch_norm, fold_weights, fuse
from quantlib.subject.models import build
from tests.quantization.networks import randomize

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_conv(bias, affine):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(5, 7, 3, bias=bias), nn.BatchNorm2d(7, affine=affine)
    norm.running_mean.normal_()
    norm.running_var.uniform_(1e-6, 3)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    oracle = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    ours = fold_weights(conv.weight, conv.bias, norm)
    assert torch.equal(ours[0], oracle[0]) and torch.equal(ours[1], oracle[1])


def test_linear():
    torch.manual_seed(0)
    linear, norm = nn.Linear(5, 7), nn.BatchNorm1d(7)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    oracle = fuse_linear_bn_weights(
        linear.weight, linear.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    ours = fold_weights(linear.weight, linear.bias, norm)
    assert torch.equal(ours[0], oracle[0]) and torch.equal(ours[1], oracle[1])


def test_all_53_batch_norms_of_resnet50():
    torch.manual_seed(0)
    model = randomize(build("resnet50"))
    folded, fused = fold_batch_norm(model), fuse(model)
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(norms) == 53 and not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    for name, norm in norms.items():
        layer = name.replace("downsample.1", "downsample.0").replace("bn", "conv")
        conv = model.get_submodule(layer)
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        for graph in (folded, fused):
            ours = graph.get_submodule(layer)
            assert torch.equal(ours.weight, weight) and torch.equal(ours.bias, bias), name

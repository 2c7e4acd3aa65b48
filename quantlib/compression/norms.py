"""Batch norms as what they are after training: a gain and a bias for each channel, in few bits.

A batch norm keeps four numbers a channel, and inference needs two. In ResNet-50's 94 MB the four are nothing;
in a file of 2 MB they would be a fifth.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quantlib.errors import ConfigError, NonFiniteError


@torch.no_grad()
def simplify_norms(model: nn.Module, mantissa: int = 5) -> nn.Module:
    """A copy whose batch norms have mean 0 and variance 1 - eps, gain and bias rounded to few bits.

        gain' = gain / sqrt(variance + eps);  bias' = bias - gain' * mean

    Biases of convolutions and linear layers are rounded as well. With mantissa 10 (float16 as it is) hardly
    anything changes; each bit less doubles the relative error of 2**-(mantissa + 1). For inference only:
    trained on, the norms would count from the wrong statistics. Introduced in notebook 14.
    """
    result = copy.deepcopy(model)
    for module in result.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            _simplify(module)
            module.weight.copy_(round_mantissa(module.weight, mantissa))
            module.bias.copy_(round_mantissa(module.bias, mantissa))
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            module.bias.copy_(round_mantissa(module.bias, mantissa))
    return result


def _simplify(norm: Any) -> None:
    gain = 1 / (norm.running_var + norm.eps).sqrt()
    weight = gain if norm.weight is None else gain * norm.weight
    bias = -norm.running_mean * weight + (0 if norm.bias is None else norm.bias)
    norm.weight, norm.bias, norm.affine = nn.Parameter(weight), nn.Parameter(bias), True
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.zero_()


def round_mantissa(values: Tensor, bits: int) -> Tensor:
    """The nearest float16 with `bits` binary digits behind the point of its mantissa, as float32.

    Raises ConfigError unless 0 <= bits <= 10, NonFiniteError beyond 65,504. Introduced in notebook 14.

    >>> round_mantissa(torch.tensor([1.0, 1.2, 3.3]), 2).tolist()
    [1.0, 1.25, 3.5]
    """
    if not 0 <= bits <= 10:
        raise ConfigError(f"mantissa is {bits}; float16 has 0 to 10 bits there.")
    fraction, exponent = torch.frexp(values.float())  # fraction in [1/2, 1)
    rounded = torch.ldexp(torch.round(fraction * 2 ** (bits + 1)), exponent - (bits + 1))
    half = rounded.half().float()
    if not torch.equal(half.isfinite(), values.isfinite()):
        raise NonFiniteError("a norm or a bias has numbers beyond float16's 65,504; scale them down first.")
    return half

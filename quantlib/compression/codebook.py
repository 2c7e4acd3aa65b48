"""Networks that compute with shared weights: looked up at every call, trained through their codebooks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from quantlib.compression.sharing import Shared
from quantlib.errors import ConfigError


class LookUp(torch.autograd.Function):
    """weight = codebook[index]; the gradient of a shared value is the sum over all weights that share it.

        dL/dc_k = sum over i with index_i = k of dL/dw_i

    Source: Han et al. 2016, equation 3. Introduced in notebook 13.
    """

    @staticmethod
    def forward(ctx: Any, codebook: Tensor, index: Tensor) -> Tensor:
        """Look every weight up; index: int32 of the weight's shape."""
        ctx.save_for_backward(index)
        ctx.size = len(codebook)
        return codebook.index_select(0, index.flatten()).view(index.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Sum the gradients of the weights by cluster."""
        (index,) = ctx.saved_tensors
        gradient = gradients[0]
        add = by_product if gradient.is_cuda else by_count
        return add(gradient.reshape(-1), index.flatten(), ctx.size), None


def by_count(values: Tensor, index: Tensor, size: int) -> Tensor:
    """The sum of the values of each index, (size,): one pass, the fastest way on a CPU."""
    return torch.bincount(index, values, minlength=size).to(values.dtype)


def by_product(values: Tensor, index: Tensor, size: int) -> Tensor:
    """The same, for a GPU: there bincount stops the host at every layer, to look for the largest index."""
    places = torch.arange(size, device=index.device, dtype=index.dtype)
    return values @ (index[:, None] == places).to(values.dtype)


class SharedWeight(nn.Module):
    """A parametrization: the layer keeps a codebook, and its weight is looked up. Zeros stay zero.

        c_k = u_k / sqrt(n_k),  n_k weights share c_k;  u is what is trained

    A step of gradient descent on u moves c_k by the *mean* gradient of its weights, not by their sum: the
    learning rates of ordinary weights fit, whatever the number of weights. Introduced in notebook 13.
    """

    index: Tensor
    scale: Tensor

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.register_buffer("index", shared.index.to(torch.int32))
        counts = torch.bincount(shared.index.flatten(), minlength=len(shared.codebook))
        free = shared.codebook != 0
        self.register_buffer("scale", counts.clamp(min=1).rsqrt() * free)

    def forward(self, values: Tensor) -> Tensor:
        """The weight, from the values that are trained."""
        weight: Tensor = LookUp.apply(self.codebook(values), self.index)
        return weight

    def codebook(self, values: Tensor) -> Tensor:
        """The shared values themselves."""
        return values * self.scale

    def start(self, codebook: Tensor) -> Tensor:
        """The values that are trained, from the shared values at the beginning."""
        return torch.where(self.scale > 0, codebook / self.scale, 0)


def attach(model: nn.Module, shared: Mapping[str, Shared]) -> nn.Module:
    """A copy of `model` whose named layers compute with codebooks, which are now what is trained.

    shared: by layer name, as of `nn.Module.named_modules`. Raises ConfigError for a layer that has no weight
    of that shape. Introduced in notebook 13.
    """
    result = copy.deepcopy(model)
    layers = dict(result.named_modules())
    for name, found in shared.items():
        layer = layers.get(name)
        weight = getattr(layer, "weight", None)
        if layer is None or weight is None or weight.shape != found.index.shape:
            raise ConfigError(f"{name!r} is no layer with a weight of shape {tuple(found.index.shape)}.")
        lookup = SharedWeight(found)
        # Registered with the codebook in the weight's place: there is no way back from a weight to it.
        layer.register_parameter("weight", nn.Parameter(lookup.start(found.codebook).to(weight.device)))
        parametrize.register_parametrization(layer, "weight", lookup.to(weight.device), unsafe=True)
    return result


def detach(model: nn.Module) -> nn.Module:
    """A copy in which every looked-up weight is an ordinary one again, equal values and all.

    Introduced in notebook 13.
    """
    result = copy.deepcopy(model)
    for layer in list(result.modules()):
        if _is_shared(layer):
            make_plain(layer, layer.weight.detach())  # type: ignore[operator]
    return result


def make_plain(layer: nn.Module, weight: Tensor) -> None:
    """Give a layer of a copied network, in place, an ordinary weight instead of one that is looked up.

    By hand: the copy's class is the original's, and torch's own removal would change that class.
    """
    layer.__class__ = type(layer).__bases__[0]
    del layer.parametrizations
    layer.register_parameter("weight", nn.Parameter(weight))


def codebooks(model: nn.Module) -> dict[str, Tensor]:
    """The shared values of each layer that `attach` has given some. Introduced in notebook 13."""
    found = {}
    for name, layer in model.named_modules():
        if _is_shared(layer):
            part: Any = layer.parametrizations
            found[name] = part.weight[0].codebook(part.weight.original).detach()
    return found


def _is_shared(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight") and isinstance(
        layer.parametrizations.weight[0],  # type: ignore[index, union-attr]
        SharedWeight,
    )


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights that are shared: of every convolution and linear layer, by layer name.

    Introduced in notebook 13.
    """
    return {
        name: layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    }


@torch.no_grad()
def with_weights(model: nn.Module, shared: Mapping[str, Shared]) -> nn.Module:
    """A copy of `model` whose named layers hold the shared weights, as ordinary weights.

    Introduced in notebook 13.
    """
    result = copy.deepcopy(model)
    for name, found in shared.items():
        layer: Any = result.get_submodule(name)
        if parametrize.is_parametrized(layer, "weight"):  # a copy into what is looked up would be lost
            make_plain(layer, found.weight.to(layer.weight))
        else:
            layer.weight.copy_(found.weight)
    return result

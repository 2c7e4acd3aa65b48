"""Weights that may still change their shared value: they train behind a codebook that is made anew.

Sharing a trained network fixes which value each weight has; tuning then moves the values alone. Here float
weights stay behind: each step computes with the shared value that is cheapest for each of them, and the
gradient passes straight through to the weight itself. So a weight may leave zero, or come to it. As they
move, so do the codebooks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from quantlib.compression.codebook import make_plain, weights_of
from quantlib.compression.huffman import entropy_bits
from quantlib.compression.rate import SETTLED, Histogram, layer_price, price_of_size, share_network, solve
from quantlib.compression.sharing import Shared
from quantlib.errors import ConfigError
from quantlib.subject.hooks import Hooks
from quantlib.subject.trainer import Trainer

FASTEST = 2.0
"""The factor by which one sharing may change the price, at most."""


class Cheapest(torch.autograd.Function):
    """weight = codebook[number of edges below the float weight]; its gradient passes straight through.

    Source: Bengio et al. 2013 (straight-through). Introduced in notebook 14.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, edges: Tensor, codebook: Tensor) -> Tensor:
        """Look every weight up; codebook: (k,), ascending; edges: (k - 1,)."""
        return codebook[torch.bucketize(weight.contiguous(), edges)]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient as it is."""
        return gradients[0], None, None


class FreeWeight(nn.Module):
    """A parametrization: the layer computes with the cheapest shared value of each float weight behind it."""

    codebook: Tensor
    edges: Tensor

    def __init__(self, codebook: Tensor, edges: Tensor) -> None:
        super().__init__()
        # Not part of the state: an average over steps would mix the places of different codebooks.
        self.register_buffer("codebook", codebook, persistent=False)
        self.register_buffer("edges", edges, persistent=False)

    def hold(self, codebook: Tensor, edges: Tensor) -> None:
        """Compute with these values from now on."""
        self.codebook, self.edges = codebook.to(self.codebook), edges.to(self.edges)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        shared: Tensor = Cheapest.apply(weight, self.edges, self.codebook)
        return shared


def edges_of(codebook: Tensor, members: Tensor, price: float) -> tuple[Tensor, Tensor]:
    """The shared values in use, ascending (k,), and the weights at which the cheapest one changes (k - 1,).

        edge = (a + b) / 2 + price (bits_b - bits_a) / (2 (b - a)),  a < b neighbours,
        bits = -log2(share of the weights that have the value)

    The value with the shorter word takes more than its half. codebook, members: the values and how many
    weights have each, as of `share_at_rate`; price: of that sharing. Introduced in notebook 14.
    """
    used = members > 0
    values, order = codebook[used].double().sort()
    bits = -(members[used][order] / members.sum()).double().log2()
    edges = (values[1:] + values[:-1]) / 2 + price * bits.diff() / (2 * values.diff())
    # Cheapest values in order have edges in order, but for rounding.
    return values.float(), edges.cummax(0).values.float()


class Resharing(Hooks):
    """Trains float weights behind codebooks, made anew every `every` steps at a price that holds the size.

        price <- price (size / megabytes)^2  after each sharing, by at most FASTEST at once
        size: entropy of all indices, 10^6 bytes

    `network` is the copy of `model` that a trainer must be given. importances: of every convolution and
    linear layer, as `importance` finds them. `goal`: hooks whose images and loss it trains with. Averaged
    weights get codebooks of their own before they are judged. Those are nearly what `settled` makes of
    them: weights gather at the edges, and a price that is a percent off moves some to the other side, so
    train the shared values after it. Raises ConfigError for layers that are missing, and as `price_of_size`
    does. Sources: Chou et al. 1989 for the price, Bengio et al. 2013 for the gradient. Introduced in
    notebook 14.
    """

    def __init__(
        self, model: nn.Module, importances: Mapping[str, float], megabytes: float, clusters: int = 16,
        every: int = 50, goal: Hooks | None = None,
    ) -> None:  # fmt: skip
        if every < 1:
            raise ConfigError(f"every is the number of steps between two sharings, 1 or more; not {every}.")
        if odd := set(weights_of(model)) ^ set(importances):
            raise ConfigError(f"The importances are not those of this model's layers: look at {min(odd)!r}.")
        self.importances, self.megabytes, self.clusters = dict(importances), megabytes, clusters
        self.every, self.goal = every, goal or Hooks()
        self.price = price_of_size(model, importances, megabytes, clusters)
        self.network = copy.deepcopy(model)
        for name in self.importances:
            none_yet = FreeWeight(torch.zeros(1), torch.zeros(0))
            parametrize.register_parametrization(self.network.get_submodule(name), "weight", none_yet)
        self.reshare(self.network)

    @torch.no_grad()
    def reshare(self, network: nn.Module) -> float:
        """Give each layer the codebook of the weights behind it, at the present price; the size in MB."""
        bits = 0.0
        for name, (weight, free) in free_weights(network).items():
            price = layer_price(self.price, self.importances[name])
            found = solve(Histogram.of(weight.cpu().numpy()), self.clusters, price, SETTLED)
            free.hold(*edges_of(torch.from_numpy(found.codebook), torch.from_numpy(found.members), price))
            bits += entropy_bits(found.members)
        return bits / 8e6

    def images(self, trainer: Trainer, images: Tensor) -> Tensor:
        """What the goal shows of a batch."""
        return self.goal.images(trainer, images)

    def loss(self, trainer: Trainer, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The goal's loss of one batch."""
        return self.goal.loss(trainer, logits, images, labels)

    def after_step(self, trainer: Trainer) -> None:
        """New codebooks when it is time; for the averaged weights where they are about to be judged."""
        done = trainer.step + 1
        if done % trainer.steps_per_epoch == 0:
            self.reshare(trainer.average.model)
        if done % self.every == 0:
            reached = self.reshare(trainer.model) / self.megabytes
            self.price *= min(max(reached**2, 1 / FASTEST), FASTEST)

    def state_dict(self) -> dict[str, Any]:
        """The price, and the codebooks in use."""
        held = {name: (free.codebook, free.edges) for name, (_, free) in free_weights(self.network).items()}
        return {"price": self.price, "held": held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The price and the codebooks as they were."""
        self.price = state["price"]
        for name, (_, free) in free_weights(self.network).items():
            free.hold(*state["held"][name])


def free_weights(network: nn.Module) -> dict[str, tuple[Tensor, FreeWeight]]:
    """By layer, the float weight behind its codebook, and the parametrization that holds the codebook."""
    found = {}
    for name, layer in network.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            part: Any = layer.parametrizations
            found[name] = (part.weight.original, part.weight[0])
    return found


def settled(
    network: nn.Module, importances: Mapping[str, float], megabytes: float, clusters: int = 16
) -> tuple[nn.Module, dict[str, Shared]]:
    """The network with the weights behind as ordinary ones, and what they share for good, in these megabytes.

    `with_weights(*settled(...))` computes with it, `attach(*settled(...))` goes on to train shared values.
    Introduced in notebook 14.
    """
    plain = copy.deepcopy(network)
    for name, (weight, _) in free_weights(plain).items():
        make_plain(plain.get_submodule(name), weight.detach())
    price = price_of_size(plain, importances, megabytes, clusters)
    return plain, share_network(plain, importances, price, clusters)

"""The optimizers of the course: SGD with Nesterov momentum, and Muon for the convolutions beside it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from quantlib.errors import ConfigError
from quantlib.subject.recipe import Recipe

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""The quintic of Jordan et al. 2024: its slope at zero is steep, so that small singular values grow fast."""


def orthogonalize(matrix: Tensor, steps: int = 4) -> Tensor:
    """Push the singular values of a matrix towards one by Newton-Schulz iterations, in bfloat16.

    X <- a X + (b A + c A A) X with A = X X^T, started from X / |X|_F; shapes (rows, columns).
    Source: Jordan et al. 2024 (Muon).
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16() / (matrix.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is orthogonalized, for filters seen as out x (in k k) matrices.

    w <- (1 - lr wd) w - lr sqrt(max(1, rows/columns)) orthogonalize(g + m v). Source: Jordan et al. 2024.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    direction = self._momentum(weight, weight.grad, group["momentum"])
                    self._update(weight, direction.flatten(1), group["lr"], group["weight_decay"])

    def _momentum(self, weight: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        velocity = self.state[weight].setdefault("velocity", torch.zeros_like(weight))
        velocity.mul_(momentum).add_(gradient)
        return gradient.add(velocity, alpha=momentum)

    @staticmethod
    def _update(weight: Tensor, direction: Tensor, lr: float, weight_decay: float) -> None:
        rows, columns = direction.shape
        update = orthogonalize(direction).to(weight.dtype).view_as(weight)
        weight.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * max(1.0, rows / columns) ** 0.5)


class Optimizers:
    """The recipe's optimizers stepped together, each at its own peak rate on the same one-cycle curve."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        filters = [p for p in model.parameters() if p.ndim == 4]
        heads = [p for p in model.parameters() if p.ndim > 1 and p.ndim != 4]
        free = [p for p in model.parameters() if p.ndim <= 1]  # biases and batch norms: no weight decay
        decay = {"weight_decay": recipe.weight_decay}
        if recipe.optimizer not in ("sgd", "muon"):
            raise ConfigError(f"there is no optimizer {recipe.optimizer!r}; choose sgd or muon")
        muon = recipe.optimizer == "muon"
        groups = [
            {"params": heads if muon else filters + heads, **decay},
            {"params": free, "weight_decay": 0.0},
        ]
        sgd = torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, nesterov=True)
        self.parts: list[tuple[torch.optim.Optimizer, float]] = [(sgd, recipe.learning_rate)]
        if muon:
            part = Muon(filters, 0.0, recipe.momentum, recipe.muon_weight_decay)
            self.parts.append((part, recipe.muon_learning_rate))

    def step(self, factor: float) -> None:
        """Take one step at `factor` times the peak rates, then drop the gradients."""
        for optimizer, peak in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state of each part, in order."""
        return [optimizer.state_dict() for optimizer, _ in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what state_dict returned."""
        for (optimizer, _), state in zip(self.parts, states, strict=True):
            optimizer.load_state_dict(state)

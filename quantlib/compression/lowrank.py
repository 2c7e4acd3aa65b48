"""Low rank: a convolution becomes two or three thinner ones, by SVD or by Tucker-2.

The filters of a layer resemble each other. Seen as a matrix or a tensor, they are close to one of low
rank, and a product of thin factors needs fewer parameters and fewer multiplications than the whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quantlib.errors import ConfigError


class Plan(NamedTuple):
    """How one layer is factorized: a name of METHODS and the rank, for tucker2 the pair (out, in)."""

    method: str
    rank: int | tuple[int, int]


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The product of `rank` nearest to `matrix` (rows, columns): left (rows, rank), right (rank, columns).

        matrix = U S V^T;  left = U_r sqrt(S_r),  right = sqrt(S_r) V_r^T
        |matrix - left right|_F^2 = sum of the dropped s^2

    Splitting S evenly keeps both factors of one size, which low bits like. Computed in float64. Raises
    ConfigError when the rank is not in 1..min(rows, columns).
    Source: Eckart and Young 1936. Introduced in notebook 17.

    >>> left, right = truncated_svd(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 1)
    >>> (left @ right).abs().round().tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    check_rank(rank, min(matrix.shape))
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(matrix.dtype), (root[:, None] * vh[:rank]).to(matrix.dtype)


def rank_by_energy(matrix: Tensor, energy: float) -> int:
    """The least rank whose singular values hold `energy`, in (0, 1], of the sum of squares.

    sum(s_1^2 .. s_r^2) >= energy * sum(s^2). Raises ConfigError for an energy out of range.
    Introduced in notebook 17.
    """
    if not 0 < energy <= 1:
        raise ConfigError(f"energy is {energy:g}; give a share above 0 and up to 1.")
    squares = torch.linalg.svdvals(matrix.double()).square()
    # The last sums differ from the whole by rounding only: without slack, energy = 1 could ask for too many.
    enough = squares.cumsum(0) >= energy * squares.sum() * (1 - 1e-12)
    return int(enough.double().argmax()) + 1


def channel_matrix(weight: Tensor) -> Tensor:
    """Filters as rows: (out, in, kh, kw) to (out, in kh kw)."""
    return weight.flatten(1)


def spatial_matrix(weight: Tensor) -> Tensor:
    """Rows of the window against its columns: (out, in, kh, kw) to (in kh, out kw)."""
    out, inputs, height, width = weight.shape
    return weight.permute(1, 2, 0, 3).reshape(inputs * height, out * width)


def channel_factors(weight: Tensor, rank: int, moment: Tensor | None = None) -> list[Tensor]:
    """A k x k convolution to `rank` channels, then 1 x 1: (rank, in, kh, kw), (out, rank, 1, 1).

    With `moment` = E[u u^T] of the windows u that the filters see, (in kh kw, in kh kw), the error of the
    outputs is least, not that of the weights: E|(W - L R) u|^2 = |(W - L R) moment^(1/2)|_F^2. Exact at full
    rank. Source: Denton et al. 2014; with a moment Zhang et al. 2016. Introduced in notebook 17.
    """
    matrix = channel_matrix(weight)
    if moment is None:
        left, right = truncated_svd(matrix, rank)
    else:
        root, inverse = _roots(moment)
        left, right = truncated_svd(matrix.double() @ root, rank)
        left, right = left.to(weight.dtype), (right @ inverse).to(weight.dtype)
    return [right.view(rank, *weight.shape[1:]), left[:, :, None, None]]


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """A symmetric square root and its inverse; directions hardly seen count as seen a little."""
    values, vectors = torch.linalg.eigh(moment.double())
    roots = values.clamp(min=1e-6 * float(values.mean())).sqrt()
    return (vectors * roots) @ vectors.t(), (vectors / roots) @ vectors.t()


def spatial_factors(weight: Tensor, rank: int) -> list[Tensor]:
    """A k x 1 convolution, then 1 x k: (rank, in, kh, 1), (out, rank, 1, kw).

    Exact at full rank. Source: Jaderberg et al. 2014. Introduced in notebook 17.
    """
    out, inputs, height, width = weight.shape
    left, right = truncated_svd(spatial_matrix(weight), rank)
    first = left.view(inputs, height, rank).permute(2, 0, 1)[..., None]
    second = right.view(rank, out, width).transpose(0, 1)[:, :, None]
    return [first, second]


def tucker2_factors(weight: Tensor, ranks: tuple[int, int], sweeps: int = 10) -> list[Tensor]:
    """1 x 1 down, k x k between few channels, 1 x 1 up: (r_in, in, 1, 1), core, (out, r_out, 1, 1).

        weight ~ core x_out A x_in B, with orthonormal A (out, r_out), B (in, r_in), core = weight x A^T x B^T

    Each sweep finds the best A for this B and the best B for this A (higher-order orthogonal iteration),
    so that the error never rises. `ranks` is (r_out, r_in). Raises ConfigError when a rank is not in
    1..channels. Source: De Lathauwer et al. 2000; Kim et al. 2016. Introduced in notebook 17.
    """
    out, inputs = weight.shape[:2]
    check_rank(ranks[0], out)
    check_rank(ranks[1], inputs)
    tensor = weight.double().flatten(2)
    b = _leading(tensor.transpose(0, 1).flatten(1), ranks[1])
    for _ in range(sweeps):
        a = _leading(torch.einsum("oik,ir->ork", tensor, b).flatten(1), ranks[0])
        b = _leading(torch.einsum("oik,or->irk", tensor, a).flatten(1), ranks[1])
    core = torch.einsum("oik,or,is->rsk", tensor, a, b).view(*ranks, *weight.shape[2:])
    parts = (b.t()[:, :, None, None], core, a[:, :, None, None])
    return [part.to(weight.dtype).contiguous() for part in parts]


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors; those of matrix matrix^T, which is small."""
    return torch.linalg.eigh(matrix @ matrix.t()).eigenvectors.flip(1)[:, :rank]


def check_rank(rank: int, largest: int) -> None:
    """ConfigError when a rank is not in 1..largest."""
    if not 1 <= rank <= largest:
        raise ConfigError(f"rank is {rank}; this layer allows 1 to {largest}.")


METHODS: dict[str, Callable[..., list[Tensor]]] = {
    "channel": channel_factors,
    "spatial": spatial_factors,
    "tucker2": tucker2_factors,
}
"""How a filter bank is split; each gives the weights of the convolutions that follow each other."""


def factorized(conv: nn.Conv2d, plan: Plan, moment: Tensor | None = None) -> nn.Sequential:
    """The convolutions that replace one: nn.Sequential, bias on the last, stride where its window is.

    `moment` is for the method "channel", see `channel_factors`. Raises ConfigError for an unknown method, a
    rank that the layer does not have, or a convolution with groups or a padding other than zeros.
    Introduced in notebook 17.
    """
    if plan.method not in METHODS:
        raise ConfigError(f"there is no method {plan.method!r}; choose one of {', '.join(METHODS)}.")
    if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ConfigError("only convolutions without groups, padded with zeros by numbers, are factorized.")
    known = {"moment": moment} if moment is not None and plan.method == "channel" else {}
    weights = METHODS[plan.method](conv.weight.detach(), plan.rank, **known)
    # On each axis one factor strides, pads and dilates for all: the first that sees the whole window there.
    owners = [
        next(place for place, weight in enumerate(weights) if weight.shape[axis] == conv.weight.shape[axis])
        for axis in (2, 3)
    ]
    layers = [
        _part(conv, weight, [owner == place for owner in owners]) for place, weight in enumerate(weights)
    ]
    if conv.bias is not None:
        layers[-1].bias = nn.Parameter(conv.bias.detach().clone())
    return nn.Sequential(*layers)


def _part(conv: nn.Conv2d, weight: Tensor, owns: list[bool]) -> nn.Conv2d:
    """One factor as a convolution; on the axes that it owns it moves as the original does."""
    out, inputs, height, width = weight.shape
    like: dict[str, Any] = {
        name: tuple(value if own else rest for value, own in zip(getattr(conv, name), owns, strict=True))
        for name, rest in (("stride", 1), ("padding", 0), ("dilation", 1))
    }
    made = nn.Conv2d(inputs, out, (height, width), bias=False, **like).to(weight.device)
    made.weight = nn.Parameter(weight.clone().contiguous(memory_format=torch.channels_last))
    return made


def find_convolution(model: nn.Module, name: str) -> nn.Conv2d | None:
    """The convolution of that name; None where there is nothing, or something else."""
    found = dict(model.named_modules(remove_duplicate=False)).get(name)
    return found if isinstance(found, nn.Conv2d) else None


def factorize(
    model: nn.Module, plans: Mapping[str, Plan], moments: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """A copy of `model` with the named convolutions factorized; all else is as it was.

    `moments`: what `second_moments` found, by layer, for the method "channel". Any module tree of nn.Conv2d
    will do. Raises ConfigError, naming the layer, for a name that is not a convolution or a plan that it does
    not allow. Introduced in notebook 17.
    """
    result = copy.deepcopy(model)
    for name, plan in plans.items():
        conv = find_convolution(result, name)
        if conv is None:
            raise ConfigError(f"{name!r} is not a convolution of this model.")
        try:
            new = factorized(conv, plan, (moments or {}).get(name))
        except ConfigError as error:
            raise ConfigError(f"Layer {name!r}: {error}") from None
        parent, _, last = name.rpartition(".")
        setattr(result.get_submodule(parent), last, new.train(conv.training))
    return result

"""Low rank: a filter bank as two or three thinner ones, by SVD or by Tucker-2.

The filters of a layer resemble each other. Seen as a matrix or a tensor, they are close to one of low
rank, and a product of thin factors needs fewer parameters and fewer multiplications than the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quantlib.errors import ConfigError


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
    thin = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().t()
    squares = torch.linalg.eigvalsh(thin @ thin.t()).flip(0).clamp(min=0)
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


def channel_factors(weight: Tensor, rank: int) -> list[Tensor]:
    """A k x k convolution to `rank` channels, then 1 x 1: (rank, in, kh, kw), (out, rank, 1, 1).

    Exact at full rank. Source: Denton et al. 2014. Introduced in notebook 17.
    """
    left, right = truncated_svd(channel_matrix(weight), rank)
    return [right.view(rank, *weight.shape[1:]), left[:, :, None, None]]


def spatial_factors(weight: Tensor, rank: int) -> list[Tensor]:
    """A k x 1 convolution, then 1 x k: (rank, in, kh, 1), (out, rank, 1, kw).

    Exact at full rank. Source: Jaderberg et al. 2014. Introduced in notebook 17.
    """
    out, inputs, height, width = weight.shape
    left, right = truncated_svd(spatial_matrix(weight), rank)
    first = left.view(inputs, height, rank).permute(2, 0, 1)[..., None]
    second = right.view(rank, out, width).transpose(0, 1)[:, :, None]
    return [first, second]


def tucker2_factors(weight: Tensor, ranks: tuple[int, int], sweeps: int = 4) -> list[Tensor]:
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
    """The leading left singular vectors, as eigenvectors of matrix matrix^T unless that is the larger one."""
    if rank <= matrix.shape[1] < matrix.shape[0]:
        return torch.linalg.svd(matrix, full_matrices=False).U[:, :rank]
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


def composed(factors: Sequence[Tensor]) -> Tensor:
    """The one filter bank (out, in, kh, kw) that does what the factors do one after the other.

    On each axis of the window only one factor may be longer than 1. Introduced in notebook 17.
    """
    whole = factors[0]
    for factor in factors[1:]:
        whole = torch.einsum("orab,ricd->oiacbd", factor, whole)
        whole = whole.flatten(4, 5).flatten(2, 3)
    return whole


def aware_factors(
    weight: Tensor, method: str, rank: int | tuple[int, int], moment: Tensor, influence: Tensor | None = None
) -> list[Tensor]:
    """Factors whose outputs, not whose weights, come near the layer's own, on the inputs that it sees.

    moment = E[u u^T] of the windows u that the filters multiply, (in kh kw, in kh kw); influence (out,): what
    a unit of squared error in an output channel costs, all the same when not given. The error is then

        E sum_o influence_o ((W - W') u)_o^2 = tr(diag(influence) (W - W') moment (W - W')^T)

    Method "channel" is its exact minimum: the outputs W u projected on their principal directions. The others
    factorize W x_in C^(1/2), C the inputs' (in, in) moment, undo the root in the first factor, and fit the
    last factor by least squares. All factors have about one size, or gradient descent would move the product
    by the largest of them. Exact at full rank. Source: Zhang et al. 2016 (channel).
    Introduced in notebook 17.
    """
    scale = torch.ones_like(weight[:, :1, :1, :1])
    if influence is not None:  # a channel that nothing depends on still gets a little
        scale = influence.clamp(min=1e-6 * float(influence.mean()) + 1e-30).sqrt().view(-1, 1, 1, 1)
    seen = weight * scale
    if method == "channel":
        first, last = _principal(seen, int(rank), moment)  # type: ignore[arg-type]
        return of_one_size([first, last / scale])
    root, inverse = _roots(_channel_moment(moment, weight.shape[1]))
    parts = METHODS[method](torch.einsum("oikl,ij->ojkl", seen, root), rank)
    parts[0] = torch.einsum("rikl,ij->rjkl", parts[0], inverse).contiguous()
    parts[-1] = parts[-1] / scale
    return of_one_size(refitted(parts, weight, moment))


def of_one_size(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same product from factors whose norms differ by less than a factor of three.

    Each is multiplied by a power of two, and all of these by each other give 1: nothing is rounded.
    Introduced in notebook 17.
    """
    sizes = torch.stack([factor.double().norm().clamp(min=1e-30).log2() for factor in factors])
    steps = (sizes.mean() - sizes).round()
    steps[-1] = -steps[:-1].sum()
    return [factor * 2.0 ** float(step) for factor, step in zip(factors, steps, strict=True)]


def output_error(change: Tensor, moment: Tensor, influence: Tensor | None = None) -> float:
    """tr(diag(influence) C moment C^T) of a change C of the filters, see `aware_factors`.

    Introduced in notebook 17.
    """
    rows = change.detach().flatten(1)
    squares = ((rows @ moment) * rows).sum(1).clamp(min=0)
    return float((squares if influence is None else squares * influence).double().sum())


def principal_outputs(weight: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """Power of the outputs W u along their principal directions, falling; and the directions, as columns.

    The eigenvectors of E[y y^T] = W moment W^T; (min(out, in kh kw),), (out, as many). Notebook 17.
    Introduced in notebook 17.
    """
    matrix = channel_matrix(weight)
    if matrix.shape[0] <= matrix.shape[1]:
        values, vectors = torch.linalg.eigh((matrix @ moment @ matrix.t()).double())
        return values.flip(0).clamp(min=0), vectors.flip(1)
    u, s, _ = torch.linalg.svd(matrix.double() @ _roots(moment)[0].double(), full_matrices=False)
    return s.square(), u


def _principal(weight: Tensor, rank: int, moment: Tensor) -> list[Tensor]:
    """W ~ U_r U_r^T W, its middle channels scaled so that both factors carry half of their power."""
    matrix = channel_matrix(weight)
    check_rank(rank, min(matrix.shape))
    values, vectors = principal_outputs(weight, moment)
    u = vectors[:, :rank].to(weight.dtype)
    right = u.t() @ matrix
    split = right.norm(dim=1, keepdim=True).clamp(min=1e-12).sqrt()
    return [(right / split).view(rank, *weight.shape[1:]), (u * split.t())[:, :, None, None]]


def _channel_moment(moment: Tensor, inputs: int) -> Tensor:
    """E[x x^T] of the input channels, summed over the places of the window: (in, in)."""
    window = len(moment) // inputs
    return torch.einsum("ikjk->ij", moment.view(inputs, window, inputs, window))


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """A symmetric square root and its inverse; directions hardly seen count as seen a little."""
    values, vectors = torch.linalg.eigh(moment.double())
    roots = values.clamp(min=1e-6 * float(values.mean()) + 1e-30).sqrt()
    pair = ((vectors * roots) @ vectors.t(), (vectors / roots) @ vectors.t())
    return pair[0].to(moment.dtype), pair[1].to(moment.dtype)


def refitted(factors: Sequence[Tensor], weight: Tensor, moment: Tensor) -> list[Tensor]:
    """The factors, the last one corrected so that the outputs on windows of this moment err least.

        last += R moment P^T (P moment P^T + ridge)^-1,  R = W - W' what is missing, P the factors before

    P u is what the last factor sees of a window u. The ridge leaves directions alone that it never sees.
    Introduced in notebook 17.
    """
    before, last = composed(factors[:-1]), factors[-1]
    high, wide = (torch.eye(side, dtype=before.dtype) for side in last.shape[2:])
    paths = torch.einsum("ricd,xa,yb->rxyiacbd", before, high, wide).flatten(3).flatten(0, 2)
    missing = (weight - composed(factors)).flatten(1)
    seen = paths @ moment
    gram = (seen @ paths.t()).double()
    gram.diagonal().add_(1e-6 * float(gram.diagonal().mean()) + 1e-30)
    step = torch.linalg.solve(gram, (seen @ missing.t()).double()).t()
    return [*factors[:-1], last + step.to(last.dtype).view_as(last)]

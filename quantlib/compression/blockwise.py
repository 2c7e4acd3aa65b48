"""Block by block: each piece of a network that was cut learns to do what that piece of the whole one does."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from quantlib.compression.pieces import pieces
from quantlib.compression.pruning import Masks, apply_masks, mask_gradients, recalibrate
from quantlib.errors import ConfigError
from quantlib.progress import progress
from quantlib.quantization.graph import BATCH_NORMS
from quantlib.quantization.reconstruction.passes import (
    as_images,
    loaded,
    made_of,
    noise_of,
    power_of,
)
from quantlib.subject.benchmark import bfloat16_is_fast

SHOWN = 64
"""Images that batch norms are measured on together: the variance between such batches is lost."""


@dataclass(frozen=True)
class Lesson:
    """How long a piece learns, and how fast: Adam on `batch_size` images at a time.

    rate: by which share of its usual size (the root mean square of its tensor, without zeros) a weight may
    move in the first step; it falls to 0 with a cosine. One rate for all would be noise for layers with
    many inputs, whose weights are small, and too little for the others.
    norms: batch norms follow the statistics of what enters them. A network that was cut needs that. One that
    is near the whole one already is better off without: these images are not augmented, those that the
    statistics are of were, and the difference alone can be twenty times the error that there was.
    Introduced in notebook 11.
    """

    iterations: int = 300
    batch_size: int = 64
    rate: float = 0.03
    seed: int = 0
    norms: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch_size < 2 or self.rate <= 0:
            raise ConfigError(
                "A lesson needs at least one iteration, two images in a batch and a rate above 0."
            )


@dataclass(frozen=True)
class Learned:
    """What a piece has learned: sum |own - whole|^2 / sum |whole|^2 over the images, before and after."""

    piece: str
    error_before: float
    error_after: float
    seconds: float


def teach_blocks(
    student: nn.Module, teacher: nn.Module, images: Tensor, lesson: Lesson | None = None,
    masks: Masks | None = None, told: Callable[[Learned], None] | None = None,
) -> list[Learned]:  # fmt: skip
    """Each piece of `student` learns, in place and in order, what `teacher`'s piece makes; a report a piece.

        minimize over weights and norms of the piece    mean |piece(x) - whole piece(x')|^2
        x: what the student's learned pieces before it make of the images; x': what the teacher's make

    So a piece also repairs the errors of those before it. It is a short problem of few layers with a target
    for every pixel of every channel, which is why some hundred steps go far. No label is used; what enters
    and leaves a piece is kept in half precision. images: (n, 3, side, side), float32, normalized, on the
    device of both networks; masks: weights that stay zero; told: called with each report as it comes.
    Statistics of batch norms are measured anew at the end of each piece, unless the lesson leaves them; a
    piece that would end worse than it began stays as it was. Raises ConfigError without images, or for
    networks that do not fall into the same pieces, NonFiniteError where an output is not finite. Sources: Li
    et al. 2021 (BRECQ), which does it for rounding; Frantar and Alistarh 2022, for pruned layers. Introduced
    in notebook 11.
    """
    lesson = lesson or Lesson()
    if not len(images):
        raise ConfigError("teach_blocks needs images to teach with; it got none.")
    whole = pieces(teacher.eval())
    own = pieces(student.eval(), like=list(whole))
    apply_masks(student, masks or {})
    low = exact = images
    found = []
    for place, name in enumerate(progress(own, "blocks", len(own), "block")):
        wanted = made_of(whole[name], exact, name)
        rng = np.random.default_rng([lesson.seed, place])
        inside = dict(own[name].named_parameters())
        kept = {weight: mask for weight, mask in (masks or {}).items() if weight in inside}
        found.append(_taught(name, own[name], low, wanted, kept, lesson, rng))
        if told is not None:
            told(found[-1])
        low, exact = made_of(own[name], low, name), wanted
    return found


def _taught(
    name: str, piece: nn.Module, low: Tensor, wanted: Tensor, masks: Masks, lesson: Lesson,
    rng: np.random.Generator,
) -> Learned:  # fmt: skip
    """One piece learns, or goes back to where it was if that did not help."""
    began, start = time.perf_counter(), copy.deepcopy(piece.state_dict())
    signal = power_of(wanted) or 1.0
    before = noise_of(piece, low, wanted) / signal
    _learn(piece, low, wanted, signal / wanted.numel(), masks, lesson, rng)
    if lesson.norms:
        _measure_norms(piece, low)
    after = noise_of(piece, low, wanted) / signal
    if not after < before:
        piece.load_state_dict(start)
    return Learned(name, before, min(before, after), time.perf_counter() - began)


def _learn(
    piece: nn.Module, low: Tensor, wanted: Tensor, power: float, masks: Masks, lesson: Lesson,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """The steps of one piece; power: the mean square of `wanted`, which the loss is relative to.

    Dropped weights get no gradient, so Adam leaves them at zero.
    """
    kind = low.device.type
    groups = [{"params": [weight], "lr": lesson.rate * _usual_size(weight)} for weight in piece.parameters()]
    optimizer = torch.optim.Adam(groups, fused=True)
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / lesson.iterations)) / 2
    )
    piece.train()
    if not lesson.norms:
        for part in piece.modules():
            if isinstance(part, BATCH_NORMS):
                part.eval()
    for _ in range(lesson.iterations):
        chosen = torch.from_numpy(np.sort(rng.permutation(len(low))[: lesson.batch_size])).to(low.device)
        with torch.autocast(kind, torch.bfloat16, enabled=bfloat16_is_fast(kind)):
            y = piece(loaded(low, chosen))
        loss = (y.float() - loaded(wanted, chosen)).square().mean() / power
        optimizer.zero_grad()
        loss.backward()
        mask_gradients(piece, masks)
        optimizer.step()
        falling.step()
    optimizer.zero_grad()  # whoever trains on must not begin with these gradients
    piece.eval()


def _usual_size(weight: Tensor) -> float:
    """Root mean square of what is not zero; 0.1 where all is."""
    left = weight.detach()[weight.detach() != 0]
    return float(left.square().mean().sqrt()) if len(left) else 0.1


def _measure_norms(piece: nn.Module, low: Tensor) -> None:
    """The statistics of a piece's batch norms, anew, from what enters it."""
    recalibrate(piece, ((as_images(x), x) for x in low.split(SHOWN)))

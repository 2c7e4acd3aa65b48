"""Knowledge distillation: a student learns from the labels and from a teacher's softened answers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantlib.errors import ConfigError
from quantlib.subject.augment import mixed
from quantlib.subject.data import Images, batches
from quantlib.subject.evaluation import usual_batch
from quantlib.subject.hooks import Hooks
from quantlib.subject.modes import answering
from quantlib.subject.trainer import Trainer


def soften(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature); (n, classes). Source: Hinton et al. 2015. Introduced in notebook 15.

    >>> soften(torch.tensor([[2.0, 0.0]]), 2.0).round(decimals=3).tolist()
    [[0.731..., 0.268...]]
    """
    return (logits / temperature).softmax(-1)


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0, weight: float = 0.9
) -> Tensor:
    """(1 - weight) cross_entropy(student, labels) + weight T^2 KL(soften(teacher) | soften(student)).

    student, teacher: logits (n, classes); labels: (n,). T^2 keeps the second term's gradient of one size
    whatever the temperature T: for a large T it tends to weight / classes * (student - teacher), both with
    their mean taken off. Raises ConfigError unless T > 0 and 0 <= weight <= 1. Source: Hinton et al. 2015.
    Introduced in notebook 15.
    """
    if temperature <= 0 or not 0 <= weight <= 1:
        raise ConfigError("Distillation needs a temperature above 0 and a weight from 0 to 1.")
    hard = F.cross_entropy(student, labels)
    soft = F.kl_div(
        (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1),
        log_target=True, reduction="batchmean",
    )  # fmt: skip
    return (1 - weight) * hard + weight * temperature**2 * soft


@torch.no_grad()
def teacher_logits(
    teacher: nn.Module, images: Images, batch_size: int | None = None, device: str = "cpu"
) -> Tensor:
    """The teacher's answer to each image once: the mean of its logits for the image and its mirror image.

    Returns (n, classes), float32, on the CPU; `device` is where the teacher is; batch_size as in `evaluate`.
    The student will see crops of these images: the answers do not follow the crops, which makes a teacher of
    any size cost one pass in all.
    Introduced in notebook 15.
    """
    with answering(teacher):
        every = batches(images, batch_size or usual_batch(device), device)
        found = [(teacher(x) + teacher(x.flip(-1))) / 2 for x, _ in every]
    return torch.cat(found).float().cpu()


class Distillation(Hooks):
    """A training run whose loss is `distillation_loss` against answers that were kept.

    answers: (training images, classes), in the order of the training set. Introduced in notebook 15.
    """

    def __init__(self, answers: Tensor, temperature: float = 4.0, weight: float = 0.9) -> None:
        self.answers, self.temperature, self.weight = answers, temperature, weight

    def loss(self, trainer: Trainer, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch; ConfigError where the answers are of another training set."""
        if len(self.answers) != len(trainer.labels):
            raise ConfigError(
                f"There are {len(self.answers):,} answers for {len(trainer.labels):,} training images; "
                "collect the teacher's answers on the images that the student trains on."
            )
        teacher = self.answers[trainer.chosen.cpu()].to(logits.device)
        return distillation_loss(logits, teacher, labels, self.temperature, self.weight)


class Taught(Hooks):
    """A training run whose teacher looks at what the student sees: the same crops, at the price of its pass.

    teacher: in eval mode from now on, on the trainer's device; the loss is `distillation_loss`. mix: both see
    `mixed` images, this is its alpha; no label is right for them, so weight is 1; 0 mixes none. Source: Beyer
    et al. 2022, who call it consistent teaching, and mix. Introduced in notebook 15.
    """

    def __init__(
        self, teacher: nn.Module, temperature: float = 1.0, weight: float = 0.5, mix: float = 0.0
    ) -> None:
        if mix < 0 or (mix and weight != 1):
            raise ConfigError("mix is 0, or above it with weight=1: mixed images have no label to learn.")
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature, self.weight, self.mix = temperature, weight, mix

    def images(self, trainer: Trainer, images: Tensor) -> Tensor:
        """The batch as it is, or mixed."""
        if not self.mix:
            return images
        draws = np.random.default_rng([trainer.recipe.seed, trainer.step, trainer.rank])
        return mixed(images, self.mix, draws)

    def loss(self, trainer: Trainer, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch; the teacher computes in the precision of the training."""
        kind, half = trainer.device.type, trainer.autocast
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=half):
            wanted = self.teacher(images).float()
        return distillation_loss(logits, wanted, labels, self.temperature, self.weight)


class Pair(nn.Module):
    """A student and a teacher that train together; in eval mode the student alone.

    (n, 3, h, w) to (n, 2 classes) logits, student first, while training. Introduced in notebook 15.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, x: Tensor) -> Tensor:
        """Answer; both while training."""
        return torch.cat([self.student(x), self.teacher(x)], 1) if self.training else self.student(x)


class JointTraining(Hooks):
    """Apprentice's scheme A: teacher and student from the start, the student after the teacher as it is.

    loss = cross_entropy(teacher) + distillation_loss(student, teacher's logits of this step); the teacher
    does not learn from the student. Source: Mishra and Marr 2018. Introduced in notebook 15.
    """

    def __init__(self, temperature: float = 1.0, weight: float = 0.5) -> None:
        self.temperature, self.weight = temperature, weight

    def loss(self, trainer: Trainer, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch of a Pair."""
        student, teacher = logits.chunk(2, 1)
        own = distillation_loss(student, teacher.detach(), labels, self.temperature, self.weight)
        return own + F.cross_entropy(teacher, labels)

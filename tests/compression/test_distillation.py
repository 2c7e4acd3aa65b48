"""Distillation: the loss against hand-made numbers and its limits, answers that go with their images."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from quantlib.compression.distillation import (
    Distillation,
    JointTraining,
    Pair,
    Taught,
    distillation_loss,
    soften,
    teacher_logits,
)
from quantlib.compression.rate import importance
from quantlib.compression.resharing import Resharing
from quantlib.compression.retraining import MaskedRetraining
from quantlib.errors import ConfigError
from quantlib.subject import data
from quantlib.subject.augment import mixed
from quantlib.subject.data import batches
from quantlib.subject.models import build
from quantlib.subject.recipe import Recipe
from quantlib.subject.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Recipe(name="tiny", model="resnet20", stages=((1, 16),), batch_size=16, learning_rate=0.05, cutout=0)


def test_the_loss_by_hand():
    # T = 1: student (0, 0) says 1/2, 1/2; teacher (ln 3, 0) says 3/4, 1/4.
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    soft = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    got = distillation_loss(student, teacher, torch.tensor([0]), temperature=1.0, weight=0.3)
    assert float(got) == pytest.approx(0.7 * math.log(2) + 0.3 * soft, rel=1e-6)
    # T = 2: the teacher says sqrt(3) : 1, and the term counts four times.
    p = math.sqrt(3) / (1 + math.sqrt(3))
    soft = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    got = distillation_loss(student, teacher, torch.tensor([1]), temperature=2.0, weight=1.0)
    assert float(got) == pytest.approx(4 * soft, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 20), weight=st.floats(0, 1))
def test_the_gradient_is_that_of_two_softmaxes(seed, temperature, weight):
    rng = np.random.default_rng(seed)
    student = torch.from_numpy(rng.normal(size=(5, 7))).requires_grad_()
    teacher, labels = torch.from_numpy(rng.normal(size=(5, 7))), torch.from_numpy(rng.integers(0, 7, 5))
    distillation_loss(student, teacher, labels, temperature, weight).backward()
    hard = student.softmax(1) - F.one_hot(labels, 7)
    soft = temperature * (soften(student, temperature) - soften(teacher, temperature))
    wanted = ((1 - weight) * hard + weight * soft) / 5
    torch.testing.assert_close(student.grad, wanted.detach(), rtol=1e-6, atol=1e-8)


def test_a_hot_teacher_is_matched_logit_by_logit():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 10, dtype=torch.double).requires_grad_(), torch.randn(4, 10).double()
    distillation_loss(student, teacher, torch.zeros(4, dtype=torch.long), 1e4, 1.0).backward()
    centred = [x - x.mean(1, keepdim=True) for x in (student.detach(), teacher)]
    torch.testing.assert_close(student.grad * 4, (centred[0] - centred[1]) / 10, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("temperature, weight", [(0.0, 0.5), (1.0, 1.5), (1.0, -0.1)])
def test_settings_without_sense_are_refused(temperature, weight):
    with pytest.raises(ConfigError, match="temperature above 0 and a weight from 0 to 1"):
        distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1).long(), temperature, weight)


def test_answers_follow_their_images(tmp_path):
    images = data.load("calibration").take(48)

    class Labels(nn.Module):  # a teacher that knows nothing but the mean of an image
        def forward(self, x):
            return x.mean((1, 2, 3)).unsqueeze(1).repeat(1, 10)

    answers = teacher_logits(Labels(), images, batch_size=20)
    means = torch.cat([x for x, _ in data.batches(images, 48)]).mean((1, 2, 3))
    torch.testing.assert_close(answers[:, 3], means)
    hooks = Distillation(answers, 1.0, 1.0)
    run = Trainer(replace(TINY, crop=0), images, images.take(16), tmp_path, hooks=hooks, compile_model=False)
    x, y = run.batch(1)
    torch.testing.assert_close(answers[run.chosen][:, 0], x.mean((1, 2, 3)), atol=0.02, rtol=0.02)
    logits = torch.randn(16, 10)
    wanted = distillation_loss(logits, answers[run.chosen], y, 1.0, 1.0)
    assert torch.equal(hooks.loss(run, logits, x, y), wanted)
    hooks.answers = answers[:40]
    with pytest.raises(ConfigError, match="40 answers for 48 training images"):
        hooks.loss(run, logits, x, y)


def test_a_student_comes_closer_to_its_teacher_than_the_labels_bring_it(tmp_path):
    images = data.load("calibration").take(64)
    torch.manual_seed(3)
    answers = 3 * torch.randn(64, 10)  # a teacher that contradicts the labels
    recipe = replace(TINY, stages=((8, 16),), crop=0, warmup=0.2)
    told = Trainer(
        recipe, images, images.take(16), tmp_path, hooks=Distillation(answers, 2.0, 1.0), compile_model=False
    )
    told.network.train()
    losses = [float(told.train_step()) for _ in range(told.total_steps)]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_a_live_teacher_answers_what_the_student_sees(tmp_path):
    images = data.load("calibration").take(32)
    run = Trainer(TINY, images, images.take(16), tmp_path, compile_model=False)
    teacher = build("resnet20").train()
    hooks, (x, labels) = Taught(teacher, 2.0, 0.9), run.batch(0)
    logits, run.autocast = torch.randn(16, 10, requires_grad=True), False
    loss = hooks.loss(run, logits, x, labels)
    assert torch.equal(loss, distillation_loss(logits, teacher.eval()(x), labels, 2.0, 0.9))
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters()) and logits.grad.abs().sum() > 0
    wanted = teacher(x)  # a student that says what the teacher says is left with the labels' share
    half = Taught(teacher).loss(run, wanted, x, labels)
    torch.testing.assert_close(half, 0.5 * F.cross_entropy(wanted, labels))


def test_both_see_the_same_mixed_images(tmp_path, monkeypatch):
    images = data.load("calibration").take(32)
    teacher, student, seen = build("resnet20").eval(), build("resnet20"), []
    hooks = Taught(teacher, weight=1.0, mix=1.0)
    run = Trainer(TINY, images, images.take(16), tmp_path, model=student, hooks=hooks, compile_model=False)
    for network in (teacher, run.network):
        network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    plain = run.batch(0)[0]
    run.train_step(), run.train_step()
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], plain)
    assert torch.equal(seen[0], mixed(plain, 1.0, np.random.default_rng([0, 0, 0])))
    assert torch.equal(seen[2], mixed(run.batch(1)[0], 1.0, np.random.default_rng([0, 1, 0])))
    for goal in (MaskedRetraining(), Resharing(student, importance(student, batches(images, 16)), 0.1)):
        assert goal.images(run, plain) is plain
        goal.goal = hooks
        assert not torch.equal(goal.images(run, plain), plain)
    for wrong in ({"mix": -1.0, "weight": 1.0}, {"mix": 1.0}):
        with pytest.raises(ConfigError, match="mixed images have no label"):
            Taught(teacher, **wrong)


def test_joint_training_teaches_both_and_the_teacher_ignores_the_student(tmp_path):
    images = data.load("calibration").take(32)
    pair = Pair(build("resnet20"), build("resnet20"))
    run = Trainer(
        TINY, images, images.take(16), tmp_path, model=pair, hooks=JointTraining(), compile_model=False
    )
    run.network.train()
    run.train_step()
    x, y = run.batch(1)
    student, teacher = pair(x).chunk(2, 1)
    loss = run.hooks.loss(run, torch.cat([student, teacher], 1), x, y)
    grads = torch.autograd.grad(loss, [pair.teacher.fc.bias, pair.student.fc.bias], retain_graph=True)
    alone = torch.autograd.grad(F.cross_entropy(teacher, y), pair.teacher.fc.bias)[0]
    torch.testing.assert_close(grads[0], alone)
    assert grads[1].abs().sum() > 0
    assert torch.equal(pair.eval()(x), pair.student(x)) and pair(x).shape == (16, 10)


class LeftBorder(nn.Module):
    """A teacher that looks at the leftmost pixels alone."""

    def forward(self, x):
        assert not self.training
        return x[..., 0].mean((1, 2)).unsqueeze(1).repeat(1, 10)


def test_a_teacher_is_asked_for_the_image_and_its_mirror_image_and_left_as_it_was():
    images, teacher = data.load("calibration").take(12), LeftBorder().train()
    answers = teacher_logits(teacher, images, batch_size=5)
    x = data.normalize(images.pixels)
    both = (x[..., 0].mean((1, 2)) + x[..., -1].mean((1, 2))) / 2
    torch.testing.assert_close(answers, both[:, None].expand(12, 10))
    assert teacher.training and not answers.requires_grad

"""Learning block by block: least squares as the oracle, masks that hold, statistics that fit."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from quantlib.compression.blockwise import Lesson, teach_blocks
from quantlib.compression.pruning import apply_masks, magnitude_masks, prunable
from quantlib.errors import ConfigError, NonFiniteError
from quantlib.subject import data
from quantlib.subject.checkpoints import load_checkpoint
from quantlib.subject.data import batches

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = Lesson(iterations=20, batch_size=16)


@pytest.fixture(scope="module")
def images():
    return torch.cat([x for x, _ in batches(data.load("calibration").take(64))])


def lesson_of(**changed):
    return Lesson(**{"iterations": 600, "batch_size": 64, "rate": 0.02, **changed})


def test_one_layer_learns_the_least_squares_solution_under_its_mask():
    """numpy solves the same problem: the best weights where the others are zero."""
    torch.manual_seed(1)
    x = torch.randn(64, 6) @ torch.randn(6, 6)  # correlated inputs: the kept weights must take over
    teacher = nn.Sequential(nn.Linear(6, 3, bias=False))
    student, masks = copy.deepcopy(teacher), magnitude_masks(teacher, 0.5)
    teach_blocks(student, teacher, x, lesson_of(iterations=2000), masks)
    wanted = (x @ teacher[0].weight.detach().t()).numpy()
    for row, mask in enumerate(masks["0.weight"]):
        best = np.linalg.lstsq(x[:, mask].numpy(), wanted[:, row], rcond=None)[0]
        assert student[0].weight[row, mask].tolist() == pytest.approx(best.tolist(), abs=0.02)
        assert not student[0].weight[row, ~mask].any()


def test_dropped_weights_stay_zero_and_the_teacher_as_it_was(images):
    teacher = load_checkpoint("resnet20")
    student, before = copy.deepcopy(teacher), copy.deepcopy(teacher.state_dict())
    masks = magnitude_masks(student, 0.8)
    reports = teach_blocks(student, teacher, images, SHORT, masks)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    for name, weight in prunable(student).items():
        assert torch.equal(weight != 0, masks[name]), name
    assert len(reports) == 11 and not any(module.training for module in student.modules())


def test_a_pruned_network_comes_nearer_to_the_whole_one(images):
    teacher = load_checkpoint("resnet20").eval()
    cut, masks = copy.deepcopy(teacher), magnitude_masks(teacher, 0.8)
    apply_masks(cut, masks)
    learned = copy.deepcopy(cut)
    reports = teach_blocks(learned, teacher, images, SHORT, masks)
    with torch.no_grad():
        wanted = teacher(images)
        far, near = ((network(images) - wanted).square().mean() for network in (cut, learned))
    assert near < far / 2
    assert sum(each.error_after < each.error_before for each in reports) >= 9


def test_what_would_end_worse_stays_as_it_was(images):
    """A whole network has nothing to learn; at a senseless rate it could only lose."""
    teacher = load_checkpoint("resnet20").eval()
    student, before = copy.deepcopy(teacher), copy.deepcopy(teacher.state_dict())
    reports = teach_blocks(student, teacher, images, lesson_of(iterations=3, rate=1.0))
    assert all(each.error_after == each.error_before for each in reports)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_statistics_are_those_of_what_enters_the_piece(images):
    """The first batch norm of the learned network sees its own maps with mean 0 and variance 1."""
    teacher = load_checkpoint("resnet20").eval()
    student = copy.deepcopy(teacher)
    teach_blocks(student, teacher, images, SHORT, magnitude_masks(teacher, 0.8))
    with torch.no_grad():
        y = student.conv1(images)
    norm = student.bn1
    assert torch.allclose(norm.running_mean, y.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(norm.running_var, y.var((0, 2, 3)), rtol=1e-3)


def test_a_lesson_may_leave_the_norms_alone(images):
    """A network near the whole one starts from where it is, not from norms of other images."""
    teacher = load_checkpoint("resnet20").eval()
    student, before = copy.deepcopy(teacher), copy.deepcopy(teacher.state_dict())
    with torch.no_grad():
        student.fc.weight.mul_(1.1)
    reports = teach_blocks(student, teacher, images, lesson_of(iterations=20, norms=False))
    state = student.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in before if "running" in name)
    assert reports[-1].error_after < reports[-1].error_before


def test_the_same_seed_gives_the_same_network(images):
    teacher, found = load_checkpoint("resnet20"), []
    for seed in (0, 0, 1):
        student = copy.deepcopy(teacher)
        masks = magnitude_masks(student, 0.8)
        teach_blocks(student, teacher, images, Lesson(iterations=3, batch_size=16, seed=seed), masks)
        found.append(student.fc.weight.detach())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_network_that_is_not_finite_is_refused_by_name(images):
    teacher = load_checkpoint("resnet20")
    teacher.layer2[0].conv1.weight.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match="The output of layer2.0"):
        teach_blocks(load_checkpoint("resnet20"), teacher, images, SHORT)


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"batch_size": 1}, {"rate": 0.0}])
def test_a_lesson_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="at least one iteration"):
        Lesson(**wrong)


def test_no_images_are_refused():
    with pytest.raises(ConfigError, match="needs images"):
        teach_blocks(load_checkpoint("resnet20"), load_checkpoint("resnet20"), torch.empty(0, 3, 32, 32))


def test_no_gradient_stays_behind(images):
    """A trainer adds up what it finds: its first step would begin with the lesson's last."""
    model = load_checkpoint("resnet20")
    taught = copy.deepcopy(model)
    teach_blocks(taught, model, images, Lesson(2, 4), magnitude_masks(taught, 0.5))
    assert all(weight.grad is None for weight in taught.parameters())

"""The students' runs: plans are read, runs are resumable, every arm trains what it says."""

import json
from dataclasses import replace

import pytest
import torch

from quantlib.compression import students
from quantlib.compression.distillation import Distillation, JointTraining, Pair, Taught
from quantlib.compression.student_plans import TEACHERS, Arm, StudentPlan, load_plan
from quantlib.compression.students import (
    answers_of,
    evaluation_of,
    hooks_of,
    main,
    run_plan,
    student_of,
    trained_student,
)  # fmt: skip
from quantlib.errors import ConfigError
from quantlib.quantization.qat import trainable_layers
from quantlib.subject import data
from quantlib.subject.evaluation import evaluate
from quantlib.subject.hooks import Hooks
from quantlib.subject.models import build
from quantlib.subject.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Recipe(name="tiny", model="resnet20", stages=((1, 16),), batch_size=16, learning_rate=0.05, cutout=0)
PLAN = StudentPlan(TINY, (Arm("alone"), Arm("low", 4, 4, teacher="answers", trained=True)), seeds=(0, 1))


@pytest.fixture
def small_world(monkeypatch):
    """Sixteen images of every split, checkpoints that are not trained, no compiler."""
    images = data.load("calibration").take(16)
    torch.manual_seed(9)
    networks = {name: build("resnet20").eval() for name in ("resnet20", "resnet50")}
    monkeypatch.setattr(data, "load", lambda split, source="full", root=None: images)
    monkeypatch.setattr(students.checkpoints, "load_checkpoint", lambda name: networks[name])
    monkeypatch.setattr(students, "Trainer", lambda *a, **k: REAL(*a, **{**k, "compile_model": False}))
    return images


REAL = students.Trainer


@pytest.mark.parametrize(
    "name, runs", [("resnet20_student", 10), ("resnet20_crops", 3), ("resnet20_low_bit", 16)]
)
def test_the_shipped_plans_name_each_run_once(name, runs):
    plan = load_plan(name)
    folders = [students.folder_name(*run) for run in plan.runs()]
    assert len(set(folders)) == len(folders) == runs
    assert {arm.teacher for arm in plan.arms} & {"answers", "crops"}


def test_students_with_another_teacher_train_alike():
    alone, crops = load_plan("resnet20_student"), load_plan("resnet20_crops")
    assert replace(crops.recipe, name=alone.recipe.name) == alone.recipe and crops.seeds == alone.seeds


def test_plans_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no \\[students\\] table"):
        load_plan("resnet20")
    with pytest.raises(ConfigError, match="bits for both sides or none"):
        Arm("x", weight_bits=4)
    path = tmp_path / "mine.toml"
    path.write_text('model = "resnet20"\nstages = [[1, 16]]\n[students]\narms = [{nam = "x"}]\n')
    with pytest.raises(ConfigError, match="nam"):
        load_plan(str(path))


def test_a_folder_of_another_plan_is_refused(small_world, tmp_path):
    plan = replace(PLAN, arms=(Arm("alone"),), seeds=(0,))
    first = list(run_plan(plan, root=tmp_path))
    assert [each["predictions"] for each in run_plan(plan, root=tmp_path)] == [first[0]["predictions"]]
    other = replace(plan, recipe=replace(TINY, learning_rate=0.01))
    with pytest.raises(ConfigError, match="give --folder"):
        list(run_plan(other, root=tmp_path))


def test_arms_differ_in_start_bits_and_teacher(small_world, tmp_path):
    def made(**settings):
        return student_of(PLAN, Arm("x", **settings), 3, small_world)

    fresh, again = made(), made()
    assert torch.equal(fresh.conv1.weight, again.conv1.weight)
    assert not torch.equal(fresh.conv1.weight, made(trained=True).conv1.weight)
    low = made(weight_bits=2, activation_bits=8, trained=True)
    bits = {(layer.weight_grid.bits, layer.input_grid.bits) for layer in trainable_layers(low).values()}
    assert bits == {(2, 8), (8, 8)}
    assert isinstance(made(teacher="joint"), Pair)
    kinds = [hooks_of(PLAN, Arm("x", teacher=t), small_world, tmp_path) for t in TEACHERS]
    assert [type(hooks) for hooks in kinds] == [Hooks, Distillation, Taught, JointTraining]
    assert kinds[1].answers.shape == (16, 10)


def test_a_plan_runs_once_and_what_it_says_is_what_the_student_does(small_world, tmp_path, monkeypatch):
    assert students.finished(PLAN, tmp_path) == []
    results = list(run_plan(PLAN, root=tmp_path))
    assert students.finished(PLAN, tmp_path) == results
    assert [(found["arm"], found["seed"]) for found in results] == [("alone", 0), ("low", 0)]
    for result, arm in zip(results, PLAN.arms, strict=True):
        student = trained_student(PLAN, arm, 0, tmp_path, small_world)
        assert (evaluate(student, small_world).predictions == evaluation_of(PLAN, result).predictions).all()
    monkeypatch.setattr(students, "Trainer", None)  # nothing is trained again
    assert list(run_plan(PLAN, root=tmp_path)) == results
    other = replace(PLAN, arms=(PLAN.arms[0], replace(PLAN.arms[1], weight_bits=2)))
    with pytest.raises(ConfigError, match="low-0 holds a run with other settings"):
        list(run_plan(other, root=tmp_path))


def test_what_another_machine_finished_is_found_without_training(tmp_path, monkeypatch):
    """A fresh clone has no cache: a notebook that only reads must see what is committed."""
    plan = replace(PLAN, arms=(Arm("alone"),), seeds=(0,))

    def commit(folder, runs):
        (folder / "alone-0").mkdir(parents=True)
        result = {"arm": "alone", "settings": vars(plan.arms[0])}
        (folder / "alone-0/result.json").write_text(json.dumps(result))

    monkeypatch.setattr(students, "take_over", commit)
    assert [found["arm"] for found in students.finished(plan, tmp_path / "none")] == ["alone"]


def test_a_small_plan_takes_its_images_from_the_slice():
    small = replace(PLAN, source="slice", images=(20, 8, 10))
    assert [len(small.split(name)) for name in ("train", "validation", "test")] == [20, 8, 10]
    assert small.split("train").split == "calibration" and small.source == "slice"


def test_a_plan_trains_where_it_is_told(small_world, tmp_path, monkeypatch):
    seen = []

    def spy(*given, **options):
        seen.append((options["device"], options["compile_model"]))
        return REAL(*given, **options)

    monkeypatch.setattr(students, "Trainer", spy)
    plan = replace(PLAN, arms=(Arm("alone"),), seeds=(0,))
    (result,) = run_plan(plan, root=tmp_path, device="cpu:0")  # another name of the CPU: no GPU is needed
    assert result["device"] == "cpu:0" and seen == [("cpu:0", False)]


def test_a_small_plan_trains_on_its_own_images(tmp_path, monkeypatch):
    seen = []

    def spy(recipe, train, validation, folder, **options):
        seen.append((train.source, len(train), len(validation)))
        return REAL(recipe, train, validation, folder, **options)

    monkeypatch.setattr(students, "Trainer", spy)
    plan = StudentPlan(TINY, (Arm("alone"),), source="slice", images=(20, 8, 10))
    (result,) = run_plan(plan, root=tmp_path)
    assert seen == [("slice", 20, 8)] and evaluation_of(plan, result).n == 10


def test_the_teacher_is_asked_once(small_world, tmp_path, monkeypatch):
    first = answers_of(PLAN, small_world, tmp_path)
    monkeypatch.setattr(students.checkpoints, "load_checkpoint", None)
    assert torch.equal(answers_of(PLAN, small_world, tmp_path), first)


def test_a_killed_teacher_goes_on_where_it_stopped(small_world, tmp_path, monkeypatch):
    whole = answers_of(PLAN, small_world, tmp_path / "at once")
    asked, ask = [], students.teacher_logits

    def dies_once(teacher, images, device):
        asked.append(len(images))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(teacher, images, device=device)

    monkeypatch.setattr(students, "PART", 5)
    monkeypatch.setattr(students, "teacher_logits", dies_once)
    with pytest.raises(KeyboardInterrupt):
        answers_of(PLAN, small_world, tmp_path)
    found = answers_of(PLAN, small_world, tmp_path)
    torch.testing.assert_close(found, whole)  # batches of 5 round otherwise than one of 16
    assert asked == [5, 5, 5, 5, 1]  # the third part twice, the first two once, in the order of the images
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("answers")] == ["answers.pt"]


def test_another_recipe_or_checkpoint_has_another_folder(monkeypatch):
    digests = {"resnet50": "a", "resnet20": "b"}
    monkeypatch.setattr(students.checkpoints, "checkpoint_info", lambda name: {"sha256": digests[name]})
    first = PLAN.folder()
    assert first == PLAN.folder() != replace(PLAN, recipe=replace(TINY, batch_size=32)).folder()
    digests["resnet20"] = "c"
    assert first != PLAN.folder()


def test_the_command_line_says_what_it_made(small_world, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text(
        'model = "resnet20"\nbatch_size = 16\nstages = [[1, 16]]\n[students]\narms = [{name = "alone"}]\n'
    )
    assert main(["--recipe", str(path), "--workers", "1", "--folder", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "1 runs, 1 side by side" in said and "1/1  alone, seed 0:" in said and "n = 16" in said
    assert json.loads((tmp_path / "runs/alone-0/result.json").read_text())["arm"] == "alone"
    assert main(["--recipe", "resnet20"]) == 1
    assert "no [students] table" in capsys.readouterr().err


@pytest.mark.parametrize("teacher", ["answers", "crops", "joint"])
def test_an_arm_sets_temperature_and_weight(small_world, tmp_path, teacher):
    arm = Arm("x", teacher=teacher, temperature=3.0, weight=0.25)  # no default of any hook
    hooks = hooks_of(PLAN, arm, small_world, tmp_path)
    assert (hooks.temperature, hooks.weight) == (3.0, 0.25)


def test_a_killed_student_goes_on_and_ends_the_same(small_world, tmp_path, monkeypatch):
    recipe = replace(TINY, batch_size=8, stages=((2, 16),))  # two epochs of two steps
    plan = replace(PLAN, recipe=recipe, arms=PLAN.arms[1:])  # low bits, answers
    step, folder = REAL.train_step, tmp_path / "parts" / students.folder_name(plan.arms[0], 0)

    def killed(trainer):
        trainer.stop = trainer.step == 2
        return step(trainer)

    monkeypatch.setattr(REAL, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        list(run_plan(plan, root=tmp_path / "parts"))
    assert (folder / "state.pt").exists() and students.finished(plan, tmp_path / "parts") == []
    monkeypatch.setattr(REAL, "train_step", step)
    (again,), (whole,) = (list(run_plan(plan, root=tmp_path / name)) for name in ("parts", "whole"))
    assert not (folder / "state.pt").exists()
    for key in ("arm", "seed", "validation_accuracy", "predictions"):
        assert again[key] == whole[key]
    one, other = (trained_student(plan, plan.arms[0], 0, tmp_path / name, small_world).state_dict()
                  for name in ("parts", "whole"))  # fmt: skip
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_two_arms_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="a name of its own"):
        replace(PLAN, arms=(Arm("alone"), Arm("alone", temperature=2.0)))

"""Students with and without a teacher, in float32 and in few bits: the runs of notebook 15, each resumable.

python -m quantlib.compression.students --recipe resnet20_low_bit
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlib.compression.distillation import Distillation, JointTraining, Pair, Taught, teacher_logits
from quantlib.compression.student_plans import Arm, StudentPlan, load_plan
from quantlib.progress import progress
from quantlib.quantization.qat import make_trainable, start_grids
from quantlib.subject import checkpoints, data
from quantlib.subject.allocator import keep_freed_memory
from quantlib.subject.benchmark import device_name
from quantlib.subject.campaign import (
    RESULT,
    campaign_arguments,
    keep_result,
    kept_result,
    kept_results,
    mark_start,
    of_one_plan,
    report_runs,
    side_by_side,
    take_over,
)
from quantlib.subject.command import run_command
from quantlib.subject.data import Images
from quantlib.subject.evaluation import Evaluation, classes, evaluate, predictions_of
from quantlib.subject.files import replace_atomically
from quantlib.subject.hooks import Hooks
from quantlib.subject.models import build
from quantlib.subject.state import load_best
from quantlib.subject.trainer import Trainer

IMAGES_START = 256
"""Training images from which the grids of a low-bit student get their first scales."""
PART = 1_500
"""Training images whose answers are kept together: a minute's work of a ResNet-50 on two cores."""


def answers_of(plan: StudentPlan, train: Images, root: Path, device: str = "cpu") -> Tensor:
    """The teacher's logits for every training image, collected once; killed, it goes on.

    Returns (n, classes), in the order of `train`, kept under `root`; PART images' answers are kept at a time.
    """
    path, folder = root / "answers.pt", root / "answers"
    if not path.exists():
        spans = [range(start, min(start + PART, len(train))) for start in range(0, len(train), PART)]
        parts = {folder / f"{span.start}-{span.stop}.pt": span for span in spans}
        if waiting := [part for part in parts if not part.exists()]:
            teacher = checkpoints.load_checkpoint(plan.teacher).to(device)
            for part in progress(waiting, desc="teacher's answers", unit="part"):
                with replace_atomically(part) as aside:
                    torch.save(teacher_logits(teacher, train.subset(parts[part]), device=device), aside)
        with replace_atomically(path) as aside:
            torch.save(torch.cat([torch.load(part, weights_only=True) for part in parts]), aside)
        shutil.rmtree(folder, ignore_errors=True)
    answers: Tensor = torch.load(path, weights_only=True)
    return answers


def student_of(plan: StudentPlan, arm: Arm, seed: int, train: Images) -> nn.Module:
    """The student at its start: float or on grids, trained or random, alone or beside a joint teacher."""
    torch.manual_seed(seed)
    student = checkpoints.load_checkpoint(plan.trained) if arm.trained else build(plan.recipe.model)
    if arm.weight_bits:
        student = make_trainable(student, arm.weight_bits, arm.activation_bits)
        start_grids(student, data.normalize(train.take(min(IMAGES_START, len(train))).pixels))
    return Pair(student, build(plan.recipe.model)) if arm.teacher == "joint" else student


def hooks_of(plan: StudentPlan, arm: Arm, train: Images, root: Path, device: str = "cpu") -> Hooks:
    """What the arm adds to the training."""
    if arm.teacher == "answers":
        return Distillation(answers_of(plan, train, root, device), arm.temperature, arm.weight)
    if arm.teacher == "crops":
        return Taught(checkpoints.load_checkpoint(plan.teacher).to(device), arm.temperature, arm.weight)
    return JointTraining(arm.temperature, arm.weight) if arm.teacher == "joint" else Hooks()


def trained_student(plan: StudentPlan, arm: Arm, seed: int, root: Path, train: Images) -> nn.Module:
    """The student that a finished run left behind, in eval mode; a low-bit one still has its grids."""
    model = load_best(student_of(plan, arm, seed, train), root / folder_name(arm, seed))
    return (model.student if isinstance(model, Pair) else model).eval()


def folder_name(arm: Arm, seed: int) -> str:
    """The folder of a run."""
    return f"{arm.name.replace(',', '').replace(' ', '_')}-{seed}"


def of_one_arm(folder: Path, arm: Arm) -> None:
    """Mark a run's folder with its arm, of which a state says nothing; ConfigError when it is another's."""
    mark_start(folder / "settings.json", asdict(arm), folder)


def run_one(
    plan: StudentPlan, root: Path, data_root: str | None, device: str, run: tuple[Arm, int]
) -> dict[str, Any]:
    """Train one student to its end, or go on with it, or only read its result.

    {"arm", "seed", "validation_accuracy", "seconds", "device", "predictions": one digit for each test
    image}. What the trainer says goes into output.txt. Introduced in notebook 15.
    """
    arm, seed = run
    folder = root / folder_name(arm, seed)
    path = folder / RESULT
    if found := kept_result(path, asdict(arm)):
        return found
    of_one_arm(folder, arm)
    train, validation, test = (plan.split(name, data_root) for name in ("train", "validation", "test"))
    recipe = replace(plan.recipe, name=folder.name, seed=seed)
    with (folder / "output.txt").open("a") as file, contextlib.redirect_stdout(file):
        Trainer(
            recipe, train, validation, folder,
            model=student_of(plan, arm, seed, train), hooks=hooks_of(plan, arm, train, root, device),
            # A few steps, or all of them on a GPU, are over before a compiler pays.
            device=device, compile_model=plan.images is None and device == "cpu",
        ).run()  # fmt: skip
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=False)
    student = trained_student(plan, arm, seed, root, train).to(device)
    digits = predictions_of(evaluate(student, test, device=device))
    result = {
        "arm": arm.name, "seed": seed, "validation_accuracy": state["best"], "seconds": state["seconds"],
        "device": device_name(device), "predictions": digits, "settings": asdict(arm),
    }  # fmt: skip
    keep_result(path, result)
    (folder / "state.pt").unlink(missing_ok=True)  # last: a kill in between must not cost the run
    return result


def finished(plan: StudentPlan, root: Path | None = None) -> list[dict[str, Any]]:
    """The results that are there, in the plan's order, without training any; ConfigError for others' ones.

    What another machine has finished and committed is there too, see `take_over`. Introduced in notebook 15.
    """
    root, runs = opened(plan, root)
    return kept_results(root, runs)


def opened(plan: StudentPlan, root: Path | None = None) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The plan's folder, marked and with what others have finished; the settings of its runs by name."""
    root = root or plan.folder()
    of_one_plan(root, plan.folder().name)
    runs = {folder_name(arm, seed): asdict(arm) for arm, seed in plan.runs()}
    take_over(root, runs)
    return root, runs


def run_plan(
    plan: StudentPlan, root: Path | None = None, workers: int = 1, data_root: str | None = None,
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Train every student of the plan and yield each result; killed, it goes on where it stopped.

    What another machine has finished and committed is not trained again, see `take_over`. Raises ConfigError
    when `root` holds the runs of another plan. Introduced in notebook 15.
    """
    root, _ = opened(plan, root)
    waiting = [arm for arm, seed in plan.runs() if not (root / folder_name(arm, seed) / RESULT).exists()]
    if any(arm.teacher == "answers" for arm in waiting):
        answers_of(plan, plan.split("train", data_root), root, device)  # once, before the workers ask for it
    for _, result in side_by_side(plan.runs(), partial(run_one, plan, root, data_root, device), workers):
        yield result


def evaluation_of(plan: StudentPlan, result: Mapping[str, Any], data_root: str | None = None) -> Evaluation:
    """The Evaluation behind a result, on the plan's test images. Introduced in notebook 15."""
    return Evaluation.of(classes(result["predictions"]), plan.split("test", data_root).labels.numpy())


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 after an error, 130 after Ctrl-C."""
    options = campaign_arguments(argv, __doc__, "resnet20_student", "students")

    def work() -> None:
        keep_freed_memory()  # one worker trains in this process, and a teacher answers in it
        plan = load_plan(options.recipe)
        folder = options.folder or plan.folder()

        def said(result: Mapping[str, Any]) -> str:
            return f"{result['arm']}, seed {result['seed']}: {evaluation_of(plan, result, options.data)}"

        results = run_plan(plan, folder, options.workers, options.data, options.device)
        report_runs(results, len(plan.runs()), options.workers, folder, said)

    return run_command(work, kept="every run is saved")


if __name__ == "__main__":
    sys.exit(main())

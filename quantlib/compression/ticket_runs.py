"""The runs of an experiment on lottery tickets, several side by side, each resumable.

python -m quantlib.compression.ticket_runs --recipe resnet20_ticket --workers 2
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from quantlib.compression.pruning import Masks, masks_of, sparsity_of
from quantlib.compression.retraining import MaskedRetraining
from quantlib.compression.tickets import TicketPlan, Trial, load_plan, start_of, trained
from quantlib.subject.allocator import keep_freed_memory
from quantlib.subject.augment import resize
from quantlib.subject.benchmark import device_name
from quantlib.subject.campaign import (
    RESULT,
    campaign_arguments,
    campaign_images,
    keep_result,
    kept_result,
    kept_results,
    of_one_plan,
    report_runs,
    side_by_side,
)
from quantlib.subject.command import run_command
from quantlib.subject.data import Images
from quantlib.subject.evaluation import Evaluation, classes, evaluate, predictions_of
from quantlib.subject.files import replace_atomically
from quantlib.subject.trainer import Trainer


class _Remember(MaskedRetraining):
    """Keeps the weights of a dense run after a few steps."""

    def __init__(self, masks: Masks, at: int, path: Path) -> None:
        super().__init__(masks=masks)
        self.at, self.path = at, path

    def after_step(self, trainer: Trainer) -> None:
        """Hold the masks; save when it is time."""
        super().after_step(trainer)
        if trainer.step + 1 == self.at:
            with replace_atomically(self.path) as aside:
                torch.save(trainer.model.state_dict(), aside)


def run_trial(
    plan: TicketPlan, trial: Trial, root: Path, data_root: str | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Train one run to its end, or go on with it, or only read its result; the result.

    {"arm", "left", "seed", "sparsity", "validation_accuracy", "seconds", "device", "predictions": "3805..."}
    with one digit for each test image. What the trainer says goes into output.txt. Introduced in notebook 12.
    """
    folder = root / trial.name
    path = folder / RESULT
    if found := kept_result(path, {"plan": plan.digest()}):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    train, validation, test = (images(plan, split, data_root) for split in ("train", "validation", "test"))
    model, masks = start_of(plan, trial, root)
    recipe = replace(plan.recipe, name=trial.name, seed=trial.seed)
    remembered = max(1, round(plan.rewind * recipe.epochs * (len(train) // recipe.batch_size)))
    hooks = _Remember(masks, remembered if trial.arm == "dense" else 0, folder / "rewind.pt")
    with (folder / "output.txt").open("a") as file, contextlib.redirect_stdout(file):
        trainer = Trainer(
            recipe, train, validation, folder, model=model, hooks=hooks, device=device, compile_model=False
        )
        hooks.begin(trainer)
        if trial.arm == "rewound" and trainer.step == 0:
            trainer.step = remembered
        trainer.run()
    best = trained(plan, trial, root).to(device)
    result = {
        **trial._asdict(), "sparsity": sparsity_of(masks_of(best)), "validation_accuracy": trainer.best,
        "seconds": trainer.seconds, "device": device_name(device),
        "settings": {"plan": plan.digest()},
        "predictions": predictions_of(evaluate(best, test, device=device)),
    }  # fmt: skip
    keep_result(path, result)
    (folder / "state.pt").unlink(missing_ok=True)  # last: a kill in between must not cost the run
    return result


@lru_cache(maxsize=3)
def images(plan: TicketPlan, split: str, root: str | None = None) -> Images:
    """The images of a plan, of the side that it wants. Introduced in notebook 12."""
    found = campaign_images(split, plan.source, plan.images, root)
    if plan.side != found.pixels.shape[-1]:
        small = resize(found.pixels.float(), plan.side).round().clamp(0, 255).to(torch.uint8)
        found = replace(found, pixels=small, md5="")
    return found


def finished(plan: TicketPlan, root: Path | None = None) -> list[dict[str, Any]]:
    """The results that are there, in the order of `trials`; ConfigError for those of another plan."""
    made = {"plan": plan.digest()}
    return kept_results(root or plan.folder(), {trial.name: made for trial in plan.trials()})


def run_plan(
    plan: TicketPlan, root: Path | None = None, workers: int = 1, data_root: str | None = None,
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Train what is not finished yet and yield each result as it comes, finished ones first.

    With several `workers` so many runs go on side by side, one thread each: for a small network that is
    faster than one run with several threads. Killed, it goes on within the run where it stopped.
    Introduced in notebook 12.
    """
    root = root or plan.folder()
    of_one_plan(root, plan.folder().name)
    yield from finished(plan, root)
    waiting = [trial for trial in plan.trials() if not (root / trial.name / RESULT).exists()]
    work = partial(run_trial, plan, root=root, data_root=data_root, device=device)
    for _, result in side_by_side(waiting, work, workers, plan.needs):
        yield result


def evaluation_of(plan: TicketPlan, result: Mapping[str, Any], data_root: str | None = None) -> Evaluation:
    """The Evaluation behind a result, on the plan's test images. Introduced in notebook 12."""
    return Evaluation.of(classes(result["predictions"]), images(plan, "test", data_root).labels.numpy())


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 after an error, 130 after Ctrl-C."""
    options = campaign_arguments(argv, __doc__, "resnet20_ticket", "tickets")

    def work() -> None:
        keep_freed_memory()  # one worker trains in this process
        plan = load_plan(options.recipe)
        folder = options.folder or plan.folder()

        def said(result: Mapping[str, Any]) -> str:
            accuracy = evaluation_of(plan, result, options.data)
            return f"{result['arm']} {result['left']:g} seed {result['seed']}: {accuracy}"

        results = run_plan(plan, folder, options.workers, options.data, options.device)
        report_runs(results, len(plan.trials()), options.workers, folder, said)

    return run_command(work, kept="every run is saved")


if __name__ == "__main__":
    sys.exit(main())

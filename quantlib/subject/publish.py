"""Turn a finished training run into a checkpoint: half precision, index entry, model card."""

import json
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantlib.errors import TrainingError
from quantlib.subject import data
from quantlib.subject.benchmark import made_on
from quantlib.subject.checkpoints import RESULTS, ROOT, checkpoint_info, load_checkpoint, save_checkpoint
from quantlib.subject.data import CLASSES, Images
from quantlib.subject.evaluation import Evaluation, evaluate
from quantlib.subject.files import write_atomically
from quantlib.subject.models import build
from quantlib.subject.recipe import Recipe
from quantlib.subject.state import load_best


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error in percent: sum over bins of n_b/n |accuracy_b - confidence_b|.

    Source: Guo et al. 2017, equal-width bins. Introduced in notebook 01.
    """
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs((correct[which == b] - confidence[which == b]).sum()) for b in range(bins)]
    return 100 * float(sum(gaps)) / len(confidence)


@torch.no_grad()
def logits_of(model: nn.Module, images: Images) -> Tensor:
    """Return the outputs for every image, (n, classes): predictions and confidences in one pass."""
    return torch.cat([model(x) for x, _ in data.batches(images, 16)])


def per_class(result: Evaluation) -> dict[str, float]:
    """Return the accuracy in percent of each class that occurs."""
    right = result.predictions == result.labels
    return {
        CLASSES[i]: round(100 * float(right[result.labels == i].mean()), 2) for i in np.unique(result.labels)
    }


def _save_measured(
    model: nn.Module, name: str, facts: dict[str, Any], validation: Images, images: Images,
    network: nn.Module | None,
) -> None:  # fmt: skip
    """Save a checkpoint with `facts`, and enter into them what its file does.

    Measured on the validation split and, last and once, on the test images. `network` as `load_checkpoint`
    takes it.
    """
    with tempfile.TemporaryDirectory() as aside:  # what is shipped stays whole while this one is measured
        save_checkpoint(model, name, facts, Path(aside))
        shipped = load_checkpoint(name, Path(aside), network)
    held_out, logits = evaluate(shipped, validation), logits_of(shipped, images)
    test = Evaluation.of(logits.argmax(1).numpy(), images.labels.numpy())
    confidence, right = logits.softmax(1).amax(1).numpy(), test.predictions == test.labels
    facts["metrics"] = {
        "validation_accuracy": round(held_out.accuracy, 2),
        "test_accuracy": round(test.accuracy, 2), "test_low": round(test.low, 2),
        "test_high": round(test.high, 2),
        "test_n": test.n, "per_class": per_class(test), "data_md5": images.md5,
        "calibration_error": round(calibration_error(confidence, right), 2),
    }  # fmt: skip
    save_checkpoint(model, name, facts)


CARD = """# {name}

{model} for CIFAR-10, {origin}.

| | |
|---|---|
| accuracy, {test_n} test images | {test_accuracy:.2f} % (95 % interval {test_low:.2f} to {test_high:.2f}) |
| accuracy, 5,000 validation images | {validation_accuracy:.2f} % |
| expected calibration error, 15 bins | {calibration_error:.2f} % |
| trained on | 45,000 training images; the other 5,000 chose the epoch; the test images were used once |
| time | {hours:.2g} hours on {trained_on} |
| stored as | safetensors, float16, {bytes} bytes, sha256 {sha256} |
| made | {date}, torch {torch}, Python {python}, seed {seed} |

Accuracy by class: {classes}.

Measured from this file. Test data md5 {data_md5}.
"""
"""The model card, to be filled."""


def publish(
    recipe: Recipe, folder: Path, root: str | None = None,
    network: nn.Module | None = None, about: dict[str, Any] | None = None, notebook: str | None = None,
) -> Path:  # fmt: skip
    """Write checkpoints/NAME.safetensors, its index entry and card, and the training log into results/.

    `network`: one that takes up the weights, where the recipe's model was changed before training; `about`:
    more for its index entry, `origin` also for the card; `notebook`: the one that records the log
    (None: the one that did so before, else 01). Raises TrainingError when the run has not finished an epoch.
    """
    best = folder / "best.pt"
    if not best.exists():
        raise TrainingError(f"{best} is missing: finish at least one epoch before publishing")
    model = load_best(network or build(recipe.model), folder)
    name = f"{recipe.name}_cifar10"
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=False)
    made = state.get("made_on") or made_on("cpu")  # it may have been another computer than this one
    gpu = made["device"].removeprefix("cuda: ")
    facts = {
        "model": recipe.model, "recipe": asdict(recipe), "hours": round(state["seconds"] / 3600, 2),
        "trained_on": made["machine"]["cpu"] if gpu == made["device"] else gpu,
    }  # fmt: skip
    begun = f"trained from {recipe.start}" if recipe.start else "trained from scratch"
    facts["origin"] = f"{begun} by `python -m quantlib.subject.training --recipe {recipe.name}`"
    facts |= about or {}
    validation, images = (data.load(split, "full", root) for split in ("validation", "test"))
    _save_measured(model, name, facts, validation, images, network)
    before = next(RESULTS.glob(f"[0-9][0-9]_training_log_{recipe.name}.csv"), None)
    notebook = notebook or (before.name[:2] if before else "01")
    log = RESULTS / f"{notebook}_training_log_{recipe.name}"
    _publish_log(recipe, folder, state["seconds"], made, log)
    card = ROOT / f"{name}.md"
    write_atomically(card, card_text(recipe, name, facts, made["machine"]))
    return card


def _publish_log(recipe: Recipe, folder: Path, seconds: float, made: dict[str, Any], stem: Path) -> None:
    """The log as a result of the study: a CSV, and a JSON that says where it comes from."""
    write_atomically(stem.with_suffix(".csv"), (folder / "log.csv").read_bytes())
    origin = {
        "profile": "full", "seed": recipe.seed, "date": str(date.today()), "seconds": round(seconds, 1),
        **made, "versions": {"torch": made["machine"]["torch"]}, "recipe": asdict(recipe),
    }  # fmt: skip
    write_atomically(stem.with_suffix(".json"), json.dumps(origin, indent=2) + "\n")


def card_text(recipe: Recipe, name: str, facts: dict[str, Any], computer: dict[str, Any]) -> str:
    """Fill the model card from what was measured; `computer`: the one that trained."""
    info = checkpoint_info(name)
    measured = dict(facts["metrics"])
    classes = ", ".join(f"{label} {value:.1f}" for label, value in measured.pop("per_class").items())
    return CARD.format(
        name=name, model=recipe.model, recipe=recipe.name, hours=facts["hours"], origin=facts["origin"],
        trained_on=facts["trained_on"], bytes=info["bytes"], sha256=info["sha256"], date=date.today(),
        torch=computer["torch"], python=computer["python"], seed=recipe.seed, classes=classes,
        **measured,
    )  # fmt: skip

"""A half-finished training run in a file small enough to commit, so that another machine can go on with it.

python -m quantlib.subject.snapshot --recipe resnet50
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from quantlib.errors import ConfigError, TrainingError
from quantlib.subject.checkpoints import ROOT, in_half
from quantlib.subject.command import run_command
from quantlib.subject.files import replace_atomically
from quantlib.subject.recipe import Recipe, load_recipe, recipe_of

if TYPE_CHECKING:
    from quantlib.subject.trainer import Trainer


def snapshot_path(recipe: Recipe) -> Path:
    """Where the snapshot of a recipe lies."""
    return ROOT / "training" / f"{recipe.name}.safetensors"


def save_snapshot(folder: Path, path: Path) -> dict[str, Any]:
    """Write the state in `folder` to `path`: weights in half precision, the place in the schedule, the log.

    Momentum and averaged weights stay behind; both build up again within a few hundred steps. Returns
    {"step", "seconds", "epochs"}. Raises TrainingError where there is no state.
    """
    source = folder / "state.pt"
    if not source.exists():
        raise TrainingError(
            f"{source} is missing: there is no unfinished run of this recipe; --folder names another place"
        )
    state = torch.load(source, map_location="cpu", weights_only=False)
    weights = {k: in_half(k, v) if v.is_floating_point() else v for k, v in state["model"].items()}
    log = folder / "log.csv"
    text = log.read_text() if log.exists() else ""
    facts = {"step": state["step"], "seconds": state["seconds"]}
    recipe = json.dumps(asdict(state["recipe"]), sort_keys=True)
    metadata = {"recipe": recipe, "facts": json.dumps(facts), "log": text}
    with replace_atomically(path) as aside:
        save_file({k: v.contiguous() for k, v in weights.items()}, aside, metadata=metadata)
    return {**facts, "epochs": max(0, len(text.splitlines()) - 1)}


def load_snapshot(trainer: "Trainer", path: Path) -> None:
    """Let a fresh trainer go on from a snapshot; one that already has steps of its own keeps them.

    Raises TrainingError for a damaged file, or one of a recipe that the trainer's does not extend.
    """
    if trainer.step or not path.exists():
        return
    try:
        with safe_open(path, "pt") as file:
            known, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"{path} is damaged ({error}); restore it with `git checkout {path}`") from error
    if not known or not _goes_on(trainer.recipe, json.loads(known["recipe"])):
        raise TrainingError(f"{path} belongs to another recipe; remove it to start from the beginning")
    trainer.model.load_state_dict(weights)
    trainer.average.model.load_state_dict(weights)
    facts = json.loads(known["facts"])
    trainer.step, trainer.seconds = facts["step"], facts["seconds"]
    if known["log"]:
        trainer.log.path.write_text(known["log"])


def _goes_on(recipe: Recipe, stored: dict[str, Any]) -> bool:
    """Whether a recipe extends the one of a snapshot, whose settings another version may have written."""
    try:
        return recipe.extends(recipe_of(stored.pop("name"), stored))
    except ConfigError:
        return False


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, or 1 after an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="resnet50")
    parser.add_argument("--folder", type=Path, help="where the state is (default: the user's cache)")
    options = parser.parse_args(argv)

    def work() -> None:
        recipe = load_recipe(options.recipe)
        path = snapshot_path(recipe)
        facts = save_snapshot(options.folder or recipe.folder, path)
        size = path.stat().st_size / 1e6
        print(f"{path}: step {facts['step']}, {facts['epochs']} epochs, {size:.1f} MB; commit it")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())

"""Compare how a training may begin: optimizer, peak rate, resolution, batch, over the same images.

python -m quantlib.study.compare_starts                       # results/01_starts.csv, one line an arm
python -m quantlib.study.compare_starts --recipe mine.toml    # build/results/mine/01_starts.csv

Every arm is a short training run with the trainer of the course, judged by validation images. What is done is
kept; the same command goes on from there, and writes the table anew after every arm.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from quantlib.errors import ConfigError
from quantlib.study import origin, results
from quantlib.subject.command import run_command
from quantlib.subject.evaluation import wilson
from quantlib.subject.layout import cache_folder
from quantlib.subject.recipe import Recipe, read_settings, recipe_of
from quantlib.subject.trainer import Trainer
from quantlib.subject.training import add_arguments, trainer_of

RECIPE, EXPERIMENT = "resnet50_starts", "01_starts"
"""What is compared unless told otherwise, and the name of the table."""


def load_arms(name_or_path: str) -> dict[str, Recipe]:
    """The arms of a recipe with a table for each: the recipe with what that table changes.

    Raises ConfigError for a recipe without arms. Introduced in notebook 01.
    """
    name, settings = read_settings(name_or_path)
    arms = settings.pop("arms", {})
    if not arms:
        raise ConfigError(
            f"{name}.toml has no arms; give it tables such as [arms.sgd] with what each changes."
        )
    return {arm: recipe_of(arm, {**settings, **changes}) for arm, changes in arms.items()}


def run_arms(
    arms: Mapping[str, Recipe], trainer_for: Callable[[Recipe], Trainer]
) -> Iterator[list[dict[str, Any]]]:
    """Train each arm to its end, or go on with it; after each, the rows of all arms that are done."""
    rows: list[dict[str, Any]] = []
    for arm, recipe in arms.items():
        trainer = trainer_for(recipe)
        trainer.run()
        rows += rows_of(arm, trainer)
        yield rows


def rows_of(arm: str, trainer: Trainer) -> list[dict[str, Any]]:
    """What a finished arm came to: validation accuracy, mean loss of its last epoch, seconds in all."""
    last, n = pd.read_csv(trainer.log.path).iloc[-1], len(trainer.validation)
    accuracy, seed = float(last["validation_accuracy"]), trainer.recipe.seed
    low, high = wilson(round(accuracy * n / 100), n)
    steps = {"steps": trainer.total_steps}
    return [
        results.row(arm, "validation_accuracy", accuracy, low, high, n, seed, **steps),
        results.row(arm, "loss", last["loss"], n=len(trainer.labels), seed=seed, **steps),
        results.row(arm, "seconds", last["seconds"], n=len(trainer.labels), seed=seed, **steps),
    ]


def compare(options: argparse.Namespace) -> None:
    """Run all arms, print and record what has been measured so far after each."""
    arms, name = load_arms(options.recipe), Path(options.recipe).stem
    root: Path = options.folder or cache_folder() / "training" / name
    profile = "full" if options.recipe == RECIPE else name  # another recipe is no part of the study

    def trainer_for(recipe: Recipe) -> Trainer:
        options.folder = root / recipe.name
        return trainer_of(options, recipe)

    for rows in run_arms(arms, trainer_for):
        seconds = sum(row["value"] for row in rows if row["metric"] == "seconds")
        about = origin.provenance(profile, device=options.device, seconds=seconds)
        results.record(EXPERIMENT, rows, about, profile)
    print(results.frame(rows).pivot(index="method", columns="metric", values="value").round(2))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, RECIPE)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args(argv)
    return run_command(lambda: compare(options), kept="every arm is saved")


if __name__ == "__main__":
    sys.exit(main())

"""Train a network from a recipe: resumable, on CPU or GPU, on one process or several (torchrun).

python -m quantlib.subject.training --recipe resnet50
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from quantlib.errors import ConfigError
from quantlib.subject import data
from quantlib.subject.allocator import keep_freed_memory
from quantlib.subject.command import add_device, at_least_one, run_command
from quantlib.subject.hooks import Hooks
from quantlib.subject.recipe import Recipe, load_recipe, trained_by
from quantlib.subject.snapshot import load_snapshot, snapshot_path
from quantlib.subject.trainer import Trainer


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, "resnet50")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-publish", action="store_true", help="do not write checkpoints/ at the end")
    parser.add_argument("--notebook", help="of the training log (default: as before, or 01)")
    return parser.parse_args(argv)


def add_arguments(parser: argparse.ArgumentParser, recipe: str) -> None:
    """Add what every command that trains needs to be told; `recipe`: the default."""
    parser.add_argument("--recipe", default=recipe, help="in quantlib/subject/recipes, or a .toml file")
    parser.add_argument("--folder", type=Path, help="of state and log (~/.cache/quantlib/training/NAME)")
    parser.add_argument("--data", help="folder of CIFAR-10 (default: looked for)")
    add_device(parser)
    parser.add_argument("--threads", type=at_least_one, default=os.cpu_count())
    parser.add_argument("--save-seconds", type=float, default=120)


def trainer_of(
    options: argparse.Namespace, recipe: Recipe, hooks: Hooks | None = None, model: nn.Module | None = None,
    images: tuple[int | None, int | None] = (None, None),
) -> Trainer:  # fmt: skip
    """The trainer of a command line; it goes on where an earlier one stopped.

    `model` and `hooks` as of Trainer; `images`: how many to train and to validate on, None for all.
    """
    folder = options.folder or recipe.folder
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
        if options.device == "cuda":
            options.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(options.device)
    every = [data.load(split, source="full", root=options.data) for split in ("train", "validation")]
    train, held_out = (found.take(n) if n else found for found, n in zip(every, images, strict=True))
    trainer = Trainer(
        recipe, train, held_out, folder, model=model, hooks=hooks, device=options.device,
        compile_model=not options.no_compile, save_seconds=options.save_seconds,
    )  # fmt: skip
    load_snapshot(trainer, snapshot_path(recipe))
    place = f"{trainer.total_steps} steps, from step {trainer.step}"
    print(f"{recipe.name}: {place}; state in {folder}", flush=True)
    return trainer


def train(options: argparse.Namespace) -> None:
    """Run one recipe to its end and publish the checkpoint."""
    if (command := trained_by(options.recipe)) not in ("", "quantlib.subject.training"):
        raise ConfigError(f"{options.recipe} is trained by `python -m {command} --recipe {options.recipe}`.")
    trainer = trainer_of(options, load_recipe(options.recipe))
    trainer.run()
    if trainer.rank == 0 and not options.no_publish:
        from quantlib.subject.publish import publish

        publish(trainer.recipe, trainer.folder, root=options.data, notebook=options.notebook)


def main(argv: list[str] | None = None, run: Callable[[argparse.Namespace], None] = train) -> int:
    """Run a command line; the exit status is 0, 1 after an error, 130 after Ctrl-C."""
    options = arguments(argv)
    return run_command(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

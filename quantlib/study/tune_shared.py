"""Share a trained network's weights in so many megabytes, train on, write the compressed file.

python -m quantlib.study.tune_shared --start squeezenet --megabytes 0.232 --name squeezenet_deep
python -m quantlib.study.tune_shared --start resnet50_pruned95 --megabytes 1.1 --name resnet50_deep80

First weights may change their shared value while they train, then the values are trained alone. The float32
network is the teacher. What has been done is kept in ~/.cache/quantlib/training/NAME; the same command goes
on from there. Files and their list, compressed.json, go into checkpoints/, for notebooks 14 and 16.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantlib.compression.archive import compress, decompress
from quantlib.compression.codebook import attach, detach
from quantlib.compression.compressed import enter_compressed
from quantlib.compression.distillation import Taught
from quantlib.compression.norms import simplify_norms
from quantlib.compression.rate import importance
from quantlib.compression.repair import kept_start
from quantlib.compression.resharing import Resharing, settled
from quantlib.compression.sharing import Shared
from quantlib.errors import ConfigError
from quantlib.subject import checkpoints, data
from quantlib.subject.campaign import mark_start
from quantlib.subject.command import run_command
from quantlib.subject.data import batches
from quantlib.subject.evaluation import evaluate
from quantlib.subject.recipe import Recipe, read_table
from quantlib.subject.training import add_arguments, trainer_of


@dataclass(frozen=True)
class Free:
    """The [free] table: epochs in which weights may change their shared value, at which rate, and how often.

    every: steps between two sharings; mix: as `Taught` has it, then the teacher is all of the loss, also of
    what follows.
    """

    epochs: int
    learning_rate: float
    every: int
    mix: float = 0.0

    def __post_init__(self) -> None:
        whole = all(isinstance(value, int) and value >= 1 for value in (self.epochs, self.every))
        if not whole or not isinstance(self.learning_rate, (int, float)) or self.learning_rate <= 0:
            raise ConfigError(
                "[free] needs epochs and every as whole numbers of 1 or more, and a learning_rate above 0."
            )


def recipe_of(options: argparse.Namespace) -> tuple[Recipe, Free]:
    """The recipe under the file's own name, with its [free] table, as the options change them."""
    needs = {"epochs": "how many", "learning_rate": "the peak", "every": "steps between two sharings"}
    changes = {} if options.free is None else {"epochs": options.free}
    recipe, own = read_table(options.recipe, "free", Free.__dataclass_fields__, needs, changes)
    if recipe.optimizer != "sgd":
        raise ConfigError(
            f'{options.recipe} has the optimizer {recipe.optimizer!r}; shared values need "sgd".'
        )
    recipe = replace(
        recipe, name=options.name or f"{options.start}_{options.megabytes:g}mb", start=options.start
    )
    if options.epochs is not None:
        if options.epochs < 1:
            raise ConfigError(f"--epochs is {options.epochs}; give 1 or more.")
        recipe = replace(recipe, stages=((options.epochs, recipe.stages[-1][1]),), cycles=())
    return recipe, Free(**own)


def importances_of(model: nn.Module, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """How much the layers' errors matter, from the folder where that has been found before."""

    def make() -> dict[str, Any]:
        drawn = data.load("calibration", source="full", root=options.data).sample(options.images, seed=seed)
        return {"importances": importance(model, batches(drawn, 16), seed=seed)}

    made = {"start": checkpoints.checkpoint_info(options.start)["sha256"], "images": options.images}
    path = options.folder / "importances.pt"
    found: dict[str, float] = kept_start(path, {**made, "seed": seed}, make)["importances"]
    return found


def freely(options: argparse.Namespace, recipe: Recipe, free: Free, taught: Taught) -> dict[str, Any]:
    """The network after its free epochs: the weights behind, and the value that each now has for good."""
    if (options.folder / "state.pt").exists():
        raise ConfigError(
            f"{options.folder} holds a training whose start is gone; give --folder, or move it away."
        )
    start = checkpoints.load_checkpoint(options.start)
    found = importances_of(start, options, recipe.seed)
    hooks = Resharing(start, found, options.megabytes, options.clusters, free.every, taught)
    own = replace(
        recipe, name=f"{recipe.name}_free", learning_rate=free.learning_rate, cycles=(),
        stages=((free.epochs, recipe.stages[-1][1]),),
    )  # fmt: skip
    apart = argparse.Namespace(**{**vars(options), "folder": options.folder / "free"})
    trainer = trainer_of(apart, own, hooks, hooks.network, (options.limit, options.validation))
    taught.teacher.to(trainer.device)
    trainer.run()
    # The last average, not the best one: at a high rate the best is chance.
    last, shares = settled(trainer.average.model.cpu(), found, options.megabytes, options.clusters)
    kept = {name: (each.codebook, each.index.to(torch.int16)) for name, each in shares.items()}
    return {"state": last.state_dict(), "shares": kept}


def shared_network(options: argparse.Namespace, recipe: Recipe, free: Free, taught: Taught) -> nn.Module:
    """What `freely` makes, computing with codebooks; from the folder where that has been done before."""
    made = {name: getattr(options, name) for name in ("start", "images", "megabytes", "clusters", "limit")}
    made |= {f"free_{name}": value for name, value in asdict(free).items()}
    made |= {f"{name}_sha256": checkpoints.checkpoint_info(getattr(options, name))["sha256"]
             for name in ("start", "teacher")}  # fmt: skip
    # The rate and the length of the training that follows may change; what the free epochs share may not.
    later = ("name", "stages", "cycles", "learning_rate")
    made |= {f"recipe_{key}": value for key, value in asdict(recipe).items() if key not in later}
    made["resolution"] = recipe.stages[-1][1]
    mark = options.folder / "options.json"
    mark_start(mark, made, mark)  # before anything is trained by them
    kept = kept_start(options.folder / "shared.pt", made, lambda: freely(options, recipe, free, taught))
    network = checkpoints.load_checkpoint(options.start)
    network.load_state_dict(kept["state"])
    return attach(
        network, {name: Shared(values, index.long()) for name, (values, index) in kept["shares"].items()}
    )


def tune(options: argparse.Namespace) -> None:
    """Share, train freely, train the values, write and check the file, enter it in the list."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("Shared values are trained by one process; start the command without torchrun.")
    recipe, free = recipe_of(options)
    torch.set_num_threads(options.threads)
    options.folder = options.folder or recipe.folder
    options.teacher = options.teacher or checkpoints.checkpoint_info(options.start)["model"]
    teacher, weight = checkpoints.load_checkpoint(options.teacher), 1.0 if free.mix else 0.5
    taught = Taught(teacher, weight=weight, mix=free.mix)
    network = shared_network(options, recipe, free, taught)
    trainer = trainer_of(options, recipe, taught, network, (options.limit, options.validation))
    taught.teacher.to(trainer.device)
    trainer.run()
    write(recipe, free, simplify_norms(detach(trainer.average.model.cpu())), options)


def write(recipe: Recipe, free: Free, network: nn.Module, options: argparse.Namespace) -> None:
    """Put the file into checkpoints/ and its facts into the list; validation accuracy is that of the file."""
    folder = options.into or checkpoints.ROOT
    path = folder / f"{recipe.name}.qldc"
    info = checkpoints.checkpoint_info(options.start)
    report = compress(network, path, info["model"])
    held_out = data.load("validation", source="full", root=options.data).take(options.validation)
    result = evaluate(decompress(path), held_out)
    entry = {
        "file": path.name, "bytes": report.bytes, "sha256": checkpoints.sha256(path), "start": options.start,
        "start_sha256": info["sha256"], "clusters": options.clusters,
        "free_epochs": free.epochs, "epochs": recipe.epochs, "teacher": options.teacher,
        "recipe": Path(options.recipe).stem, "free_learning_rate": free.learning_rate,
        "validation_accuracy": result.accuracy, "validation_n": result.n,
    }  # fmt: skip
    enter_compressed(recipe.name, entry, folder)
    print(f"{path}: {report.bytes:,} bytes, validation {result}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, "resnet50_shared")
    parser.set_defaults(no_compile=True)
    parser.add_argument("--start", default="resnet50", help="the checkpoint whose weights are shared")
    parser.add_argument("--teacher", help="the checkpoint that teaches (default: that of the same model)")
    parser.add_argument("--megabytes", type=float, required=True, help="entropy of all indices")
    parser.add_argument("--clusters", type=int, default=16, help="shared values a layer, beside zero")
    parser.add_argument("--free", type=int, help="epochs in which weights may change their value")
    parser.add_argument("--epochs", type=int, help="in which the values alone are trained")
    parser.add_argument("--name", help="of the file (default: START_MEGABYTESmb)")
    parser.add_argument("--images", type=int, default=512, help="for the importance (default 512)")
    parser.add_argument("--validation", type=int, default=5000, help="validation images (default 5000)")
    parser.add_argument("--limit", type=int, help="training images, fewer than all, to try it out")
    parser.add_argument("--into", type=Path, help="instead of checkpoints/")
    options = parser.parse_args(argv)
    return run_command(lambda: tune(options))


if __name__ == "__main__":
    sys.exit(main())

"""Share a trained network's weights in so many megabytes, tune the shared values, write the compressed file.

python -m quantlib.study.tune_shared --megabytes 1.8                        # the dense ResNet-50
python -m quantlib.study.tune_shared --start resnet50_pruned95 --megabytes 1.1 --name resnet50_deep80

The float32 network is the teacher. What has been done is kept in ~/.cache/quantlib/training/NAME; the same
command goes on from there. Files and their list, compressed.json, go into checkpoints/, where notebook 14
finds them.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantlib.compression.archive import compress, decompress
from quantlib.compression.blockwise import Lesson
from quantlib.compression.codebook import attach, detach
from quantlib.compression.compressed import enter_compressed
from quantlib.compression.distillation import Taught
from quantlib.compression.norms import simplify_norms
from quantlib.compression.pruning import recalibrate
from quantlib.compression.rate import importance, price_of_size, share_network
from quantlib.compression.repair import REPAIR_IMAGES, kept_start, repaired
from quantlib.compression.sharing import Shared
from quantlib.errors import ConfigError
from quantlib.subject import checkpoints, data
from quantlib.subject.command import run_command
from quantlib.subject.data import batches
from quantlib.subject.evaluation import evaluate
from quantlib.subject.recipe import load_recipe
from quantlib.subject.state import load_best
from quantlib.subject.training import add_arguments, trainer_of


def shares(model: nn.Module, options: argparse.Namespace, seed: int) -> dict[str, Shared]:
    """Codebooks of all layers whose indices take so many megabytes; the images say what matters."""
    drawn = data.load("calibration", source="full", root=options.data).sample(options.images, seed=seed)
    importances = importance(model, batches(drawn, 16), seed=seed)
    price = price_of_size(model, importances, options.megabytes, options.clusters)
    return share_network(model, importances, price, options.clusters)


def started(path: Path, options: argparse.Namespace, seed: int) -> dict[str, Shared]:
    """The codebooks before their tuning, from the folder where they have been made before."""

    def make() -> dict[str, Any]:
        found = shares(checkpoints.load_checkpoint(options.start), options, seed)
        return {"shares": {name: (each.codebook, each.index.to(torch.int16)) for name, each in found.items()}}

    kept = kept_start(path, options_of(options, seed), make)["shares"]
    return {name: Shared(codebook, index.long()) for name, (codebook, index) in kept.items()}


def options_of(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What the codebooks depend on."""
    chosen = {name: getattr(options, name) for name in ("start", "images", "megabytes", "clusters")}
    return {**chosen, "seed": seed, "start_sha256": checkpoints.checkpoint_info(options.start)["sha256"]}


def finish(network: nn.Module, options: argparse.Namespace) -> nn.Module:
    """The tuned network as it is stored: plain weights, norms measured anew, and rounded."""
    plain = detach(network).eval()
    measure_norms(plain, options)
    return simplify_norms(plain)


def measure_norms(network: nn.Module, options: argparse.Namespace) -> None:
    """The statistics of the batch norms, of the network as it is now."""
    drawn = data.load("calibration", source="full", root=options.data).sample(options.statistics, seed=1)
    recalibrate(network, batches(drawn, 64))


def tune(options: argparse.Namespace) -> None:
    """Share, train to the end of the recipe, write and check the file, enter it in the list."""
    name = options.name or f"{options.start}_{options.megabytes:g}mb"
    recipe = replace(load_recipe(options.recipe), name=name, start=options.start)
    if options.epochs is not None:
        if options.epochs < 1:
            raise ConfigError(f"--epochs is {options.epochs}; give 1 or more.")
        recipe = replace(recipe, stages=((options.epochs, recipe.stages[-1][1]),), cycles=())
    torch.set_num_threads(options.threads)
    folder = options.folder or recipe.folder
    start = checkpoints.load_checkpoint(options.start)
    skeleton = attach(start, started(folder / "start.pt", options, recipe.seed))
    measure_norms(skeleton, options)
    options.teacher = options.teacher or checkpoints.checkpoint_info(options.start)["model"]
    taught = Taught(checkpoints.load_checkpoint(options.teacher))
    if options.repair:
        shown = data.load("calibration", source="full", root=options.data).sample(REPAIR_IMAGES, recipe.seed)
        lesson, path = Lesson(options.repair, seed=recipe.seed), folder / "repaired.pt"
        teacher = checkpoints.checkpoint_info(options.teacher)["sha256"]
        made = {**options_of(options, recipe.seed), "statistics": options.statistics, "teacher": teacher}
        repaired(skeleton, taught.teacher, shown, lesson, path, made, device=options.device)
    trainer = trainer_of(options, recipe, taught, skeleton, (options.limit, options.validation))
    taught.teacher.to(trainer.device)
    trainer.run()
    if trainer.rank == 0:
        write(name, finish(load_best(trainer.model, trainer.folder).cpu(), options), options, recipe.epochs)


def write(name: str, network: nn.Module, options: argparse.Namespace, epochs: int) -> None:
    """Put the file into checkpoints/ and its facts into the list; validation accuracy is that of the file."""
    folder = options.into or checkpoints.ROOT
    path = folder / f"{name}.qldc"
    info = checkpoints.checkpoint_info(options.start)
    report = compress(network, path, info["model"])
    held_out = data.load("validation", source="full", root=options.data).take(options.validation)
    result = evaluate(decompress(path), held_out)
    entry = {
        "file": path.name, "bytes": report.bytes, "sha256": checkpoints.sha256(path), "start": options.start,
        "start_sha256": info["sha256"], "clusters": options.clusters, "epochs": epochs,
        "teacher": options.teacher, "repair": options.repair,
        "validation_accuracy": result.accuracy, "validation_n": result.n,
    }  # fmt: skip
    enter_compressed(name, entry, folder)
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
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--repair", type=int, default=300, help="steps a block learns first (default 300)")
    parser.add_argument("--name", help="of the file (default: START_MEGABYTESmb)")
    parser.add_argument("--images", type=int, default=512, help="for the importance (default 512)")
    parser.add_argument("--statistics", type=int, default=2048, help="images for the norms (default 2048)")
    parser.add_argument("--validation", type=int, default=5000, help="validation images (default 5000)")
    parser.add_argument("--limit", type=int, help="training images, fewer than all, to try it out")
    parser.add_argument("--into", type=Path, help="instead of checkpoints/")
    options = parser.parse_args(argv)
    return run_command(lambda: tune(options))


if __name__ == "__main__":
    sys.exit(main())

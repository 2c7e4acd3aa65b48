"""Factorize a trained network under a budget of multiply-adds, tune it for a few epochs, publish it.

python -m quantlib.study.tune_lowrank                       # 0.4 of ResNet-50's multiply-adds
python -m quantlib.study.tune_lowrank --share 0.3 --recipe my_recipe.toml

The network as it was is the teacher. What has been done is kept in ~/.cache/quantlib/training/RECIPE; the
same command goes on from there.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from quantlib.compression.blockwise import Lesson
from quantlib.compression.budget import allocate, share_of
from quantlib.compression.distillation import Taught
from quantlib.compression.factorized import Plan, factorize, skeleton_of
from quantlib.compression.lowrank_file import from_plain, plain
from quantlib.compression.ranks import convolutions, list_choices
from quantlib.compression.repair import REPAIR_IMAGES, kept_start, repaired
from quantlib.compression.windows import logit_influence, second_moments
from quantlib.subject import data
from quantlib.subject.campaign import mark_start
from quantlib.subject.checkpoints import checkpoint_info, load_checkpoint
from quantlib.subject.command import run_command
from quantlib.subject.data import Images, batches
from quantlib.subject.publish import publish
from quantlib.subject.recipe import Recipe, load_recipe
from quantlib.subject.training import add_arguments, trainer_of


def factorize_under(
    model: nn.Module, images: Images, share: float, points: int = 8
) -> tuple[nn.Module, dict[str, Plan]]:
    """The network with at most `share` of the convolutions' multiply-adds, and the plan of each layer.

    `images` show what the filters see; an eighth of them, what their outputs do to the logits.
    """
    names = list(convolutions(model))
    moments = second_moments(model, batches(images, 16), names)
    influence = logit_influence(model, batches(images.take(max(1, len(images) // 8)), 16), names)
    example = next(iter(batches(images.take(1))))[0]
    options = list_choices(model, example, moments, influence, points=points)
    plans = allocate(options, share)
    print(
        f"{len(plans)} of {len(names)} layers factorized: {share_of(options, plans):.3f} of the multiply-adds"
    )
    return factorize(model, plans, moments, influence), plans


def started(recipe: Recipe, options: argparse.Namespace) -> tuple[nn.Module, dict[str, Plan]]:
    """The factorized network before its training, from the folder where it has been made before."""
    model, folder = load_checkpoint(recipe.start), options.folder or recipe.folder
    every = data.load("calibration", source="full", root=options.data)

    def make() -> dict[str, Any]:
        drawn = every.sample(options.images, seed=recipe.seed)
        network, plans = factorize_under(model, drawn, options.share)
        return {"plans": plain(plans), "state": network.state_dict()}

    made = {
        "share": options.share, "images": options.images, "seed": recipe.seed,
        "start": recipe.start, "start_sha256": checkpoint_info(recipe.start)["sha256"],
    }  # fmt: skip
    mark = folder / "options.json"
    mark_start(mark, {**made, "repair": options.repair}, mark)
    kept = kept_start(folder / "start.pt", made, make)
    plans = from_plain(kept["plans"])
    network = skeleton_of(model, plans)
    network.load_state_dict(kept["state"])
    if options.repair:
        shown = every.sample(REPAIR_IMAGES, seed=recipe.seed)
        lesson = Lesson(options.repair, rate=0.01, seed=recipe.seed, norms=False)
        repaired(network, model, shown, lesson, folder / "repaired.pt", made, device=options.device)
    return network, plans


def tune(options: argparse.Namespace) -> None:
    """Factorize, train to the end of the recipe, publish."""
    recipe = load_recipe(options.recipe)
    torch.set_num_threads(options.threads)
    network, plans = started(recipe, options)
    taught = Taught(load_checkpoint(recipe.start))
    trainer = trainer_of(options, recipe, taught, network)
    taught.teacher.to(trainer.device)  # this process's own, which the trainer knows
    trainer.run()
    if trainer.rank == 0 and not options.no_publish:
        about = {
            "plans": plain(plans),
            "start_sha256": checkpoint_info(recipe.start)["sha256"],
            "origin": f"{recipe.start} factorized to {options.share:g} of its multiply-adds and tuned by "
            f"`python -m quantlib.study.tune_lowrank --recipe {recipe.name} --share {options.share:g} "
            f"--images {options.images} --repair {options.repair}`",
        }
        skeleton = skeleton_of(load_checkpoint(recipe.start), plans)
        publish(recipe, trainer.folder, root=options.data, network=skeleton, about=about, notebook="17")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, "resnet50_lowrank")
    parser.add_argument("--share", type=float, default=0.4, help="of the multiply-adds (default 0.4)")
    parser.add_argument("--images", type=int, default=512, help="calibration images (default 512)")
    parser.add_argument("--repair", type=int, default=300, help="steps a block learns first (default 300)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-publish", action="store_true", help="do not write checkpoints/ at the end")
    options = parser.parse_args(argv)
    return run_command(lambda: tune(options))


if __name__ == "__main__":
    sys.exit(main())

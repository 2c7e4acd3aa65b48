"""Factorize a trained network under a budget of multiply-adds, tune it for a few epochs, publish it.

python -m quantlib.study.tune_lowrank                       # 0.4 of ResNet-50's multiply-adds
python -m quantlib.study.tune_lowrank --share 0.3 --recipe my_recipe.toml

What has been done is kept in ~/.cache/quantlib/training/RECIPE; the same command goes on from there.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import nn

from quantlib.compression.budget import allocate, share_of
from quantlib.compression.factorized import Plan, factorize, skeleton_of
from quantlib.compression.lowrank_file import from_plain, plain
from quantlib.compression.ranks import convolutions, list_choices
from quantlib.compression.windows import logit_influence, second_moments
from quantlib.subject import data
from quantlib.subject.checkpoints import load_checkpoint
from quantlib.subject.command import check_start, run_command
from quantlib.subject.data import Images, batches
from quantlib.subject.files import replace_atomically
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
    """The factorized network before its tuning, from the folder where it has been made before."""
    model, path = load_checkpoint(recipe.start), (options.folder or recipe.folder) / "start.pt"
    made = {"share": options.share, "images": options.images, "start": recipe.start}
    if path.exists():
        kept = torch.load(path, weights_only=True)
        check_start(path, kept["made"], made)
        plans = from_plain(kept["plans"])
        network = skeleton_of(model, plans)
        network.load_state_dict(kept["state"])
        return network, plans
    every = data.load("calibration", source="full", root=options.data)
    network, plans = factorize_under(model, every.sample(options.images, seed=recipe.seed), options.share)
    with replace_atomically(path) as aside:
        torch.save({"made": made, "plans": plain(plans), "state": network.state_dict()}, aside)
    return network, plans


def tune(options: argparse.Namespace) -> None:
    """Factorize, train to the end of the recipe, publish."""
    recipe = load_recipe(options.recipe)
    torch.set_num_threads(options.threads)
    network, plans = started(recipe, options)
    trainer = trainer_of(options, recipe, model=network)
    trainer.run()
    if trainer.rank == 0 and not options.no_publish:
        about = {
            "plans": plain(plans),
            "origin": f"{recipe.start} factorized to {options.share:g} of its multiply-adds and tuned by "
            f"`python -m quantlib.study.tune_lowrank --recipe {recipe.name} --share {options.share:g}`",
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
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-publish", action="store_true", help="do not write checkpoints/ at the end")
    options = parser.parse_args(argv)
    return run_command(lambda: tune(options))


if __name__ == "__main__":
    sys.exit(main())

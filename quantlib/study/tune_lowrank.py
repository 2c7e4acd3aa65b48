"""Factorize a trained network under a budget of multiply-adds, tune it for a few epochs, publish it.

python -m quantlib.study.tune_lowrank                       # 0.4 of ResNet-50's multiply-adds
python -m quantlib.study.tune_lowrank --share 0.3 --recipe my_recipe.toml

What has been done is kept in ~/.cache/quantlib/training/RECIPE; the same command goes on from there.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from quantlib.compression.budget import allocate, share_of
from quantlib.compression.factorized import Plan, factorize, skeleton_of
from quantlib.compression.lowrank_file import from_plain, plain
from quantlib.compression.ranks import convolutions, list_choices
from quantlib.compression.windows import logit_influence, second_moments
from quantlib.subject import data
from quantlib.subject.checkpoints import load_checkpoint
from quantlib.subject.command import run_command
from quantlib.subject.data import Images, batches
from quantlib.subject.layout import cache_folder
from quantlib.subject.publish import publish
from quantlib.subject.recipe import Recipe, load_recipe
from quantlib.subject.training import Trainer


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


def started(recipe: Recipe, folder: Path, share: float, images: int) -> tuple[nn.Module, dict[str, Plan]]:
    """The factorized network before its tuning, from the folder where it has been made before."""
    model, path = load_checkpoint(recipe.start), folder / "start.pt"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        plans = from_plain(kept["plans"])
        network = skeleton_of(model, plans)
        network.load_state_dict(kept["state"])
        return network, plans
    drawn = data.load("calibration", source="full").sample(images, seed=recipe.seed)
    network, plans = factorize_under(model, drawn, share)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"plans": plain(plans), "state": network.state_dict()}, path)
    return network, plans


def tune(options: argparse.Namespace) -> None:
    """Factorize, train to the end of the recipe, publish."""
    recipe = load_recipe(options.recipe)
    folder = options.folder or cache_folder() / "training" / recipe.name
    torch.set_num_threads(options.threads)
    network, plans = started(recipe, folder, options.share, options.images)
    images, held_out = (data.load(split, source="full") for split in ("train", "validation"))
    trainer = Trainer(
        recipe, images, held_out, folder, model=network, device=options.device,
        compile_model=not options.no_compile,
    )  # fmt: skip
    print(
        f"{recipe.name}: {trainer.total_steps} steps, from step {trainer.step}; state in {folder}", flush=True
    )
    trainer.run()
    if not options.no_publish:
        about = {
            "plans": plain(plans),
            "origin": f"{recipe.start} factorized to {options.share:g} of its multiply-adds and tuned by "
            f"`python -m quantlib.study.tune_lowrank --recipe {recipe.name} --share {options.share:g}`",
        }
        publish(recipe, folder, network=skeleton_of(load_checkpoint(recipe.start), plans), about=about)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="resnet50_lowrank", help="a name, or a .toml file")
    parser.add_argument("--share", type=float, default=0.4, help="of the multiply-adds (default 0.4)")
    parser.add_argument("--images", type=int, default=512, help="calibration images (default 512)")
    parser.add_argument("--folder", type=Path, help="where state and log are kept")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-publish", action="store_true", help="do not write checkpoints/ at the end")
    options = parser.parse_args(argv)
    return run_command(lambda: tune(options))


if __name__ == "__main__":
    sys.exit(main())

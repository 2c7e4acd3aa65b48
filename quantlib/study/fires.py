"""SqueezeNet with and without each of its strategies, all trained alike: the runs of notebook 16."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from quantlib.compression.costs import macs
from quantlib.quantization.qconfig import check_name
from quantlib.subject.campaign import side_by_side
from quantlib.subject.data import Images
from quantlib.subject.models import SqueezeNet
from quantlib.subject.recipe import Recipe
from quantlib.subject.trainer import Trainer

VARIANTS: dict[str, dict[str, bool]] = {
    "plain": {"one_by_one": False, "squeeze": False, "late": False},
    "with_one_by_one": {"one_by_one": True, "squeeze": False, "late": False},
    "with_squeeze": {"one_by_one": True, "squeeze": True, "late": False},
    "squeezenet": {"one_by_one": True, "squeeze": True, "late": True},
    "without_one_by_one": {"one_by_one": False, "squeeze": True, "late": True},
    "without_squeeze": {"one_by_one": True, "squeeze": False, "late": True},
}
"""Strategies switched on one after the other, then the whole network without one of them.

"with_squeeze" is the whole network without late downsampling.
"""


def variant(name: str) -> SqueezeNet:
    """The untrained network of that name; ConfigError lists the known ones. Introduced in notebook 16."""
    check_name(name, VARIANTS, "variant")
    return SqueezeNet(**VARIANTS[name])


def train_variants(
    names: Sequence[str], recipe: Recipe, train: Images, validation: Images, folder: Path, workers: int = 1
) -> dict[str, Trainer]:
    """Train variants as `train_variant` does, so many side by side, the most expensive first; by name.

    Workers are processes of their own: what they need for speed (see `keep_freed_memory`) must not touch the
    process that measures times afterwards. Introduced in notebook 16.
    """
    order = sorted(names, key=lambda name: -macs(variant(name), torch.zeros(3, 32, 32)).macs)
    work = partial(_finish, recipe, train, validation, folder)
    for name, seconds in side_by_side(order, work, workers):
        print(f"{name}: trained in {seconds / 60:.1f} min", flush=True)
    return {name: train_variant(name, recipe, train, validation, folder) for name in names}


def _finish(recipe: Recipe, train: Images, validation: Images, folder: Path, name: str) -> float:
    """The seconds of a variant's training; the trainer itself stays in its process."""
    return train_variant(name, recipe, train, validation, folder).seconds


def train_variant(name: str, recipe: Recipe, train: Images, validation: Images, folder: Path) -> Trainer:
    """Train a variant to the end of the recipe, in folder/NAME; the trainer, whose `average` is the result.

    A run that was stopped goes on from there, a finished one is only loaded. Its lines go to log.csv there,
    not to the screen. Introduced in notebook 16.
    """
    torch.manual_seed(recipe.seed)  # the same start, whatever ran before
    trainer = Trainer(recipe, train, validation, folder / name, model=variant(name), compile_model=False)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.run()
    return trainer


def trained(trainer: Trainer) -> nn.Module:
    """The averaged network, ready to be evaluated. Introduced in notebook 16."""
    return trainer.average.model.eval()

"""Masked retraining: the weights that are left learn to do without those that are gone.

python -m quantlib.compression.retraining --recipe resnet50_pruned90
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlib.compression.blockwise import Lesson
from quantlib.compression.distillation import Taught
from quantlib.compression.pruning import (
    Masks,
    Schedule,
    apply_masks,
    magnitude_masks,
    mask_gradients,
    masks_of,
    sparsity_of,
)
from quantlib.compression.repair import REPAIR_IMAGES, repaired
from quantlib.errors import ConfigError, TrainingError
from quantlib.subject import data, training
from quantlib.subject.checkpoints import checkpoint_info, load_checkpoint
from quantlib.subject.data import Images
from quantlib.subject.hooks import Hooks
from quantlib.subject.models import build
from quantlib.subject.publish import publish
from quantlib.subject.recipe import Recipe, kinds_of, read_table
from quantlib.subject.state import load_best
from quantlib.subject.trainer import Trainer


@dataclass(frozen=True)
class Pruning:
    """The [pruning] table of a recipe: how sparse, in which way, and how often the masks are made anew.

    kind, final, initial, rounds, until: see Schedule; scope: see magnitude_masks; every: steps between two
    looks at a gradual schedule; teacher: the checkpoint that is half of the loss, "" for labels alone; mix:
    as `Taught` has it, and then the teacher is all of the loss; 0 for images as they are.
    repair: steps that each block learns from the teacher's (or the start's) block before the training
    begins, 0 for none, on `repair_images` training images; for kind "one_shot". Introduced in notebook 11.
    """

    final: float
    kind: str = "gradual"
    initial: float = 0.0
    rounds: int = 1
    until: float = 0.7
    scope: str = "global"
    every: int = 50
    teacher: str = ""
    mix: float = 0.0
    repair: int = 0
    repair_images: int = REPAIR_IMAGES

    def __post_init__(self) -> None:
        if self.repair and self.kind != "one_shot":
            raise ConfigError(
                'repair is for kind = "one_shot": later cuts would undo what the blocks learned.'
            )
        if self.mix < 0 or (self.mix and not self.teacher):
            raise ConfigError("mix is 0, or above it with a teacher, who alone can answer mixed images.")
        if self.every < 1:
            raise ConfigError(f"every is the number of steps between two cuts, 1 or more; not {self.every}.")

    @property
    def schedule(self) -> Schedule:
        """The sparsity over the progress of the training."""
        return Schedule(self.final, self.kind, self.initial, self.rounds, self.until)


class MaskedRetraining(Hooks):
    """Holds dropped weights at zero while a trainer trains, and drops more as the schedule asks.

    Before a step the gradients of dropped weights are set to zero, so that no momentum gathers behind the
    masks and Muon does not see them; after the step the weights are. The averaged weights follow, and the
    best epoch is looked for anew whenever the network gets sparser. `masks` without `pruning`: these, for
    good. `goal`: hooks whose images and loss it trains with; until it is set, the recipe's.
    Introduced in notebook 11.
    """

    def __init__(self, pruning: Pruning | None = None, masks: Masks | None = None) -> None:
        self.pruning, self.masks, self.goal = pruning, dict(masks or {}), Hooks()
        self.asked = -1.0  # the sparsity of the last cut

    @property
    def sparsity(self) -> float:
        """The share of dropped weights; 0 before the first masks."""
        return sparsity_of(self.masks) if self.masks else 0.0

    def begin(self, trainer: Trainer) -> None:
        """Prune before the first forward pass; a run that goes on keeps what it has."""
        self.masks = {name: mask.to(trainer.device) for name, mask in self.masks.items()}
        if trainer.step == 0 or not self.masks:  # a snapshot brings weights, zeros and all, but no masks
            self._hold(trainer)
            self._cut(trainer)

    def images(self, trainer: Trainer, images: Tensor) -> Tensor:
        """What the goal shows of a batch."""
        return self.goal.images(trainer, images)

    def loss(self, trainer: Trainer, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The goal's loss of one batch."""
        return self.goal.loss(trainer, logits, images, labels)

    def before_step(self, trainer: Trainer) -> None:
        """Silence the gradients of dropped weights."""
        mask_gradients(trainer.model, self.masks)

    def after_step(self, trainer: Trainer) -> None:
        """Set dropped weights to zero, whatever the optimizer has made of them; drop more when it is time."""
        apply_masks(trainer.model, self.masks)
        if self.pruning is not None:
            arrived = self._progress(trainer) >= self.pruning.until
            if arrived or (trainer.step + 1) % self.pruning.every == 0:
                self._cut(trainer)

    def _progress(self, trainer: Trainer) -> float:
        """The share of all steps that is done when the step in hand is."""
        return (trainer.step + 1) / trainer.total_steps

    def _settings(self) -> dict[str, Any] | None:
        return None if self.pruning is None else asdict(self.pruning)

    def _cut(self, trainer: Trainer) -> None:
        """New masks within the old ones, if the schedule asks for a sparser network than the last one."""
        if self.pruning is None or self.pruning.schedule(self._progress(trainer)) <= self.asked:
            return
        self.asked = self.pruning.schedule(self._progress(trainer))
        found = magnitude_masks(trainer.model, self.asked, self.pruning.scope, self.masks)
        self.masks = {name: mask.to(trainer.device) for name, mask in found.items()}
        self._hold(trainer)
        trainer.best = -1.0  # an epoch of a denser network must not win

    def _hold(self, trainer: Trainer) -> None:
        apply_masks(trainer.model, self.masks)
        apply_masks(trainer.average.model, self.masks)

    def state_dict(self) -> dict[str, Any]:
        """The masks, what was asked for last, and by which settings."""
        return {"masks": self.masks, "asked": self.asked, "pruning": self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The masks as they were; a state without any leaves them. TrainingError for other settings."""
        kept, wanted = state.get("pruning"), self._settings()
        if kept and wanted and kept != wanted:
            raise TrainingError(
                f"the state to go on with was pruned by {kept}, not by {wanted}; "
                "give --folder, or move it away to start again"
            )
        self.masks, self.asked = state.get("masks", self.masks), state.get("asked", self.asked)


def load_pruning_recipe(name_or_path: str) -> tuple[Recipe, Pruning]:
    """A recipe with its [pruning] table. ConfigError when it has none, or a setting that is not known.

    Introduced in notebook 11.
    """
    needs = {"final": "the share of the weights to drop"}
    recipe, own = read_table(name_or_path, "pruning", Pruning.__dataclass_fields__, needs)
    with kinds_of("pruning", recipe.name):
        pruning = Pruning(**own)
        pruning.schedule  # noqa: B018  (a schedule that cannot be is refused before any work is done)
    return recipe, pruning


def retrain(
    recipe: Recipe, train: Images, validation: Images, folder: Path, *,
    pruning: Pruning | None = None, masks: Masks | None = None, model: nn.Module | None = None,
    **options: Any,
) -> nn.Module:  # fmt: skip
    """Train `model` (default: the recipe's) under masks to the end of the recipe; the best averaged weights.

    Called again with the same folder it goes on where it stopped, or only reads the result. `options` go to
    the Trainer. Without pruning and masks it is plain training. Introduced in notebook 11.
    """
    hooks = MaskedRetraining(pruning, masks)
    trainer = Trainer(recipe, train, validation, folder, model=model, hooks=hooks, **options)
    hooks.begin(trainer)
    trainer.run()
    return load_best(trainer.model, folder).eval()


def published(
    recipe: Recipe, pruning: Pruning, folder: Path, root: str | None = None, notebook: str = "11"
) -> Path:
    """Write the pruned checkpoint, its index entry and card, and the log into results/; the card's path.

    The index says how sparse it is, and which network it started from, by sha256. Introduced in notebook 11.
    """
    model = load_best(build(recipe.model), folder)
    masks = masks_of(model.half().float())  # as the file will have it: a few small weights become zero
    left, every = (sum(int(part) for part in parts) for parts in zip(
        *((mask.sum(), mask.numel()) for mask in masks.values()), strict=True
    ))  # fmt: skip
    origin = (
        f"{left:,} of the {every:,} weights of its convolutions and its classifier left, the others zero; "
        f"pruned and retrained from {recipe.start or 'random weights'} by "
        f"`python -m quantlib.compression.retraining --recipe {recipe.name}`"
    )
    about: dict[str, Any] = {
        "origin": origin, "pruning": asdict(pruning), "sparsity": round(sparsity_of(masks), 6)
    }  # fmt: skip
    if recipe.start:
        before = checkpoint_info(recipe.start)
        about["start_sha256"] = before["sha256"]
        about |= {key: before[key] for key in ("status",) if key in before}
    return publish(recipe, folder, root, about=about, notebook=notebook)


def repaired_start(recipe: Recipe, pruning: Pruning, options: argparse.Namespace) -> nn.Module:
    """The start, cut at once, after its blocks have learned; found again in the folder, as start.pt.

    Introduced in notebook 11.
    """
    network, teacher = load_checkpoint(recipe.start), load_checkpoint(pruning.teacher or recipe.start)
    made = {"start": checkpoint_info(recipe.start)["sha256"], "pruning": asdict(pruning)}
    masks = magnitude_masks(network, pruning.final, pruning.scope)
    every = data.load("calibration", source="full", root=options.data)
    shown = every.sample(pruning.repair_images, recipe.seed)
    lesson, path = Lesson(pruning.repair, seed=recipe.seed), (options.folder or recipe.folder) / "start.pt"
    return repaired(network, teacher, shown, lesson, path, made, masks, options.device)


def run(options: argparse.Namespace) -> None:
    """Retrain one recipe to its end and publish the pruned checkpoint."""
    recipe, pruning = load_pruning_recipe(options.recipe)
    hooks = MaskedRetraining(pruning)
    torch.set_num_threads(options.threads)
    network = repaired_start(recipe, pruning, options) if pruning.repair else None
    trainer = training.trainer_of(options, recipe, hooks, network)
    if pruning.teacher:  # on this process's own device, which the trainer knows
        teacher, weight = load_checkpoint(pruning.teacher).to(trainer.device), 1.0 if pruning.mix else 0.5
        hooks.goal = Taught(teacher, weight=weight, mix=pruning.mix)
    hooks.begin(trainer)
    trainer.run()
    if trainer.rank == 0 and not options.no_publish:
        notebook = options.notebook or "11"
        print(published(recipe, pruning, trainer.folder, options.data, notebook).read_text())


if __name__ == "__main__":
    sys.exit(training.main(run=run))

"""What a training run keeps: averaged weights, a state file to go on from, a log."""

import copy
import csv
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantlib.errors import TrainingError
from quantlib.subject.benchmark import made_on
from quantlib.subject.files import replace_atomically, write_atomically

if TYPE_CHECKING:
    from quantlib.subject.trainer import Trainer


class Average:
    """The exponential moving average of a model's weights and batch-norm statistics.

    a <- a + (1 - d_t) (w - a), with d_t = min(decay, (1 + t) / (10 + t)), so that the random start is
    forgotten within a few steps. Introduced in notebook 01.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.steps = decay, 0

    @staticmethod
    def _tensors(model: nn.Module) -> list[Tensor]:
        every = [t for t in model.state_dict().values() if t.is_floating_point() and t.numel()]
        return list({(t.data_ptr(), t.shape): t for t in every}.values())  # a shared one moves once

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average a little towards the model."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._tensors(self.model), self._tensors(model), share)


class TrainingLog:
    """A CSV file with one row an epoch, appended to as training goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Add one row, with a header when it is the first."""
        new = not self.path.exists() or not self.path.stat().st_size  # a full disk leaves an empty one
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})

    def cut(self, step: int) -> None:
        """Leave out what came after `step`: a kill between log and state has the epoch done again."""
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n") and line.strip()]  # the last may be cut off
        kept = whole[:1] + [row for row in whole[1:] if int(row.split(",")[0]) <= step]
        if len(kept) < len(lines):
            write_atomically(self.path, "".join(kept))


def save_state(trainer: "Trainer") -> None:
    """Write everything needed to go on, atomically: a crash leaves the old file or the new one."""
    trainer.saved_at = time.monotonic()
    if trainer.rank:
        return
    state = {
        "recipe": trainer.recipe, "model": trainer.model.state_dict(),
        "average": trainer.average.model.state_dict(),
        "average_steps": trainer.average.steps, "optimizers": trainer.optimizers.state_dict(),
        "step": trainer.step, "seconds": trainer.seconds, "best": trainer.best,
        "epoch_loss": trainer.epoch_loss, "epoch_steps": trainer.epoch_steps,
        "hooks": trainer.hooks.state_dict(), "made_on": made_on(trainer.device),
    }  # fmt: skip
    with replace_atomically(trainer.folder / "state.pt") as aside:
        torch.save(state, aside)


def load_best(model: nn.Module, folder: Path, file: str = "best.pt") -> nn.Module:
    """Fill `model` with the averaged weights that a run in `folder` found best, and return it."""
    model.load_state_dict(torch.load(folder / file, map_location="cpu", weights_only=True))
    return model


def load_state(trainer: "Trainer") -> None:
    """Go on from the saved state, if there is one, of the same recipe or of one that this one extends."""
    path = trainer.folder / "state.pt"
    if not path.exists():
        if trainer.rank == 0:
            trainer.log.cut(-1)  # of a run whose state was moved away
        return
    try:
        state = torch.load(path, map_location=trainer.device, weights_only=False)
    except Exception as error:
        raise TrainingError(
            f"{path} cannot be read ({error}); move it away to start from the beginning"
        ) from error
    if not trainer.recipe.extends(state["recipe"]):
        raise TrainingError(
            f"{path} belongs to another recipe; give --folder, or move it away to start again"
        )
    trainer.model.load_state_dict(state["model"])
    trainer.average.model.load_state_dict(state["average"])
    trainer.average.steps = state["average_steps"]
    trainer.optimizers.load_state_dict(state["optimizers"])
    trainer.hooks.load_state_dict(state.get("hooks", {}))
    trainer.step, trainer.seconds, trainer.best = state["step"], state["seconds"], state["best"]
    trainer.epoch_loss, trainer.epoch_steps = state.get("epoch_loss", 0.0), state.get("epoch_steps", 0)
    if trainer.rank == 0:
        trainer.log.cut(trainer.step)

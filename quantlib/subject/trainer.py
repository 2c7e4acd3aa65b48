"""The trainer: one network learns by a recipe, resumable, on CPU or GPU, alone or with others like it."""

import math
import signal
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from quantlib.errors import TrainingError
from quantlib.progress import progress
from quantlib.subject import data
from quantlib.subject.augment import augment, resize
from quantlib.subject.benchmark import bfloat16_is_fast
from quantlib.subject.checkpoints import load_checkpoint
from quantlib.subject.compiled import compiled
from quantlib.subject.data import Images
from quantlib.subject.evaluation import evaluate
from quantlib.subject.files import replace_atomically
from quantlib.subject.hooks import Hooks
from quantlib.subject.models import build
from quantlib.subject.optimizers import Optimizers
from quantlib.subject.recipe import Recipe
from quantlib.subject.state import Average, TrainingLog, load_state, save_state

CHECK_EVERY = 20
"""Steps between two looks at the loss: a look waits for the device."""


class Trainer:
    """One training run: model, averaged model, optimizer, place in the schedule, log.

    Randomness depends on (seed, epoch, step) alone, so that a resumed run equals an uninterrupted one.
    `folder` holds state.pt (everything needed to go on), best.pt (the averaged weights that were best
    on the validation split) and log.csv. `model` replaces the recipe's network, which starts from the
    recipe's checkpoint or from random weights; `hooks` add to the training. Introduced in notebook 01.
    """

    def __init__(
        self, recipe: Recipe, train: Images, validation: Images, folder: Path, *,
        model: nn.Module | None = None, hooks: Hooks | None = None,
        device: str = "cpu", compile_model: bool = True, save_seconds: float = 120,
    ) -> None:  # fmt: skip
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder, self.device = recipe, folder, torch.device(device)
        self.hooks = hooks or Hooks()
        self.save_seconds, self.saved_at = save_seconds, time.monotonic()
        self.validation = validation
        self.pixels = train.pixels.to(self.device)
        self.labels = train.labels.to(self.device)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        model = model or (load_checkpoint(recipe.start) if recipe.start else build(recipe.model))
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.average = Average(self.model, recipe.ema_decay)
        self.optimizers = Optimizers(self.model, recipe)
        self.steps_per_epoch = len(self.labels) // recipe.batch_size
        if not self.steps_per_epoch:
            raise TrainingError(
                f"{len(self.labels)} images are fewer than one batch of {recipe.batch_size};"
                " take more images or a smaller batch_size"
            )
        self.step, self.seconds, self.best, self.stop = 0, 0.0, -1.0, False
        self.epoch_loss, self.epoch_steps = 0.0, 0  # the sum of the losses of the epoch in hand, and how many
        self.chosen = torch.empty(0, dtype=torch.long)  # places of the last batch among the training images
        folder.mkdir(parents=True, exist_ok=True)
        self.log = TrainingLog(folder / "log.csv")
        load_state(self)
        module = compiled(self.model, self.device, compile_model)
        self.network = nn.parallel.DistributedDataParallel(module) if self.world > 1 else module
        self.autocast = bfloat16_is_fast(self.device.type)

    @property
    def total_steps(self) -> int:
        """The number of optimizer steps of the whole recipe."""
        return self.steps_per_epoch * self.recipe.epochs

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The augmented batch of one step: this process's share of the epoch's permutation."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size, seed = self.recipe.batch_size, self.recipe.seed
        order = np.random.default_rng([seed, epoch]).permutation(len(self.labels))
        share = order[place * size : (place + 1) * size][self.rank :: self.world]
        self.chosen = chosen = torch.from_numpy(share).to(self.device)
        x, (side, hole) = data.normalize(self.pixels[chosen]), self.recipe.stage(epoch)
        x = augment(x, np.random.default_rng([seed, epoch, place, self.rank]), self.recipe.crop, hole)
        x = resize(x, side).contiguous(memory_format=torch.channels_last)
        return x, self.labels[chosen]

    def train_step(self) -> Tensor:
        """Take one optimizer step and return its loss, still on the device."""
        x, y = self.batch(self.step)
        place = [self.recipe.seed, self.step, self.rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))  # dropout's draws
        x = self.hooks.images(self, x)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            logits = self.network(x)
        loss = self.hooks.loss(self, logits.float(), x, y)
        loss.backward()
        self.hooks.before_step(self)
        self.optimizers.step(self.recipe.rate_factor(self.step / self.steps_per_epoch))
        self.hooks.after_step(self)
        self.average.update(self.model)
        self.step += 1
        return loss.detach()

    def train_epoch(self) -> float:
        """Finish the current epoch and return the mean of its losses, those before an interruption too."""
        self.network.train()
        epoch = self.step // self.steps_per_epoch
        remaining = (epoch + 1) * self.steps_per_epoch - self.step
        losses: list[Tensor] = []
        started = time.monotonic()
        for count in progress(
            range(1, remaining + 1), f"epoch {epoch + 1}/{self.recipe.epochs}", unit="step"
        ):
            losses.append(self.train_step())
            if self.step % CHECK_EVERY == 0 or count == remaining or self.stop:
                self.check(losses)
                self.epoch_loss += float(torch.stack(losses).double().sum())
                self.epoch_steps += len(losses)
                losses = []
                self.seconds, started = self.seconds + time.monotonic() - started, time.monotonic()
            if count == remaining:  # an epoch's last step is judged and saved first, see `run`
                break
            if self.stop or (not losses and time.monotonic() - self.saved_at > self.save_seconds):
                save_state(self)
            if self.stop:
                raise KeyboardInterrupt
        mean, self.epoch_loss, self.epoch_steps = self.epoch_loss / self.epoch_steps, 0.0, 0
        return mean

    def check(self, losses: list[Tensor]) -> None:
        """Stop at a loss or a weight that is not finite, before anything of it is saved."""
        finite = torch.isfinite(torch.stack(losses))
        first = [*(~finite).nonzero()[:, 0].tolist(), len(finite) - 1][0]
        # The last update may ruin weights whose loss was finite before it. One answer: a GPU is asked once.
        sound = torch.stack([weight.isfinite().all() for weight in self.model.parameters()]).all()
        if not bool(finite.all() & sound):
            kept = self.folder / "state.pt"
            raise TrainingError(
                f"the loss is not finite at step {self.step - len(finite) + first + 1}, or the weights after "
                "it: lower learning_rate in the recipe and begin in another folder, by --folder"
                + (f"; the last good state is kept in {kept}" if kept.exists() else "")
            )

    def run(self) -> None:
        """Train to the end of the recipe, saving the state on the way and when interrupted."""
        before = {}
        if threading.current_thread() is threading.main_thread():  # no other may listen to signals
            listened = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.request_stop) for number in listened}
        try:
            if self.rank == 0 and self.step == 0 and self.best < 0 and self.recipe.start:
                self.judge(epoch=0, loss=math.nan)
                save_state(self)
            while self.step < self.total_steps:
                epoch = self.step // self.steps_per_epoch
                loss = self.train_epoch()
                if self.rank == 0:
                    self.judge(epoch + 1, loss)
                    save_state(self)
                if self.stop:
                    raise KeyboardInterrupt
        finally:
            self.stop = False  # called again, it goes on
            for number, handler in before.items():  # a notebook's interrupts are its own again
                signal.signal(number, handler)

    def request_stop(self, *_: object) -> None:
        """Ask the loop to stop after the step in hand: half a step must never be saved."""
        self.stop = True

    def judge(self, epoch: int, loss: float) -> None:
        """Measure the averaged weights on the validation split, keep the best, log one line.

        epoch: how many are done; 0 is the start of a network that was trained before, which some training
        only harms.
        """
        result = evaluate(self.average.model, self.validation, device=str(self.device))
        side = self.recipe.resolution(max(epoch - 1, 0))
        done = max(self.step - 1, 0) / self.steps_per_epoch
        self.log.append({
            "step": self.step, "epoch": epoch, "resolution": side,
            "lr": self.recipe.learning_rate * self.recipe.rate_factor(done), "loss": loss,
            "validation_accuracy": result.accuracy, "seconds": self.seconds,
        })  # fmt: skip
        trained = f"{side} px  loss {loss:.4f}" if epoch else "the start"
        print(
            f"epoch {epoch:3d}/{self.recipe.epochs}  {trained}  validation {result.accuracy:.2f} % "
            f"(n {result.n})  {self.seconds / 60:.1f} min", flush=True,
        )  # fmt: skip
        if result.accuracy > self.best:
            self.best = result.accuracy
            with replace_atomically(self.folder / "best.pt") as aside:
                torch.save(self.average.model.state_dict(), aside)

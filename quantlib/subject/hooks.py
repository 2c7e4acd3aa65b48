"""What a training run does beyond its recipe: another loss, masks, a schedule of its own."""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from quantlib.subject.trainer import Trainer


class Hooks:
    """The trainer's calls into a method; this base class is plain training.

    Pruning overrides `after_step` to set weights back to zero, distillation overrides `loss`, and `images` to
    mix them. What a method
    must remember to go on after an interruption goes into `state_dict`. Introduced in notebook 11.
    """

    def images(self, trainer: "Trainer", images: Tensor) -> Tensor:
        """Return what the network is to see of a batch; images: (n, 3, side, side), augmented and resized."""
        return images

    def loss(self, trainer: "Trainer", logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of one batch: cross entropy with the recipe's label smoothing.

        logits: (n, classes) in float32; images: what `images` returned; labels: (n,).
        """
        return F.cross_entropy(logits, labels, label_smoothing=trainer.recipe.label_smoothing)

    def before_step(self, trainer: "Trainer") -> None:
        """Change gradients or weights after the backward pass, before the optimizer's step."""

    def after_step(self, trainer: "Trainer") -> None:
        """Change weights after the optimizer's step, before the average takes them up."""

    def state_dict(self) -> dict[str, Any]:
        """Return what load_state_dict needs to go on; it is saved with the trainer's own state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what state_dict returned."""

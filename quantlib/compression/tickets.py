"""Lottery tickets: what of a pruned network is worth keeping, its places, its first or its trained weights?

The plan of the experiment, and what each of its runs starts from; `ticket_runs` does the training.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from quantlib.compression.pruning import Masks, magnitude_masks, masks_of, shuffled_masks
from quantlib.errors import ConfigError
from quantlib.subject.layout import cache_folder
from quantlib.subject.models import build
from quantlib.subject.recipe import Recipe, kinds_of, read_table
from quantlib.subject.state import load_best

CHAINS = ("ticket", "rewound", "retrained")
"""Arms that prune again what they have trained; the others borrow the masks of the tickets."""

ARMS = (*CHAINS, "reinitialized", "random_mask")
"""What a pruned network can start from."""
OTHER_START = 1000
"""Added to the seed of the run, for weights that have nothing to do with it."""


class Trial(NamedTuple):
    """One training run: an arm ("dense" or one of ARMS), the share of the weights left, a seed.

    Introduced in notebook 12.
    """

    arm: str
    left: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.arm}-{self.left:g}-{self.seed}"


@dataclass(frozen=True)
class TicketPlan:
    """An experiment on tickets; `trials` lists its runs.

    recipe: how every single run trains. deciding: shares of the weights that are left, with all `seeds`, each
    pruned from the one before; elsewhere: shares with the first seed only. rewind: the share of the steps
    after which the dense run is remembered for the arm "rewound". source, images: as in `data.load`, how many
    of train, validation and test (None: all); side: images are shrunk to so many pixels first.
    Introduced in notebook 12.
    """

    recipe: Recipe
    deciding: tuple[float, ...]
    elsewhere: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = ARMS
    rewind: float = 0.1
    source: str = "full"
    images: tuple[int, int, int] | None = None
    side: int = 32

    def __post_init__(self) -> None:
        if not all(0 < left < 1 for left in (*self.deciding, *self.elsewhere)) or set(self.arms) - set(ARMS):
            raise ConfigError(
                f"shares left are in (0, 1), arms are among {', '.join(ARMS)}; not so in {self}."
            )
        if set(self.deciding) & set(self.elsewhere) or not 0 < self.rewind < 1:
            raise ConfigError(
                f"A share is deciding or elsewhere, not both, and rewind is in (0, 1); not so in {self}."
            )
        if set(self.arms) - set(CHAINS) and "ticket" not in self.arms:
            raise ConfigError("reinitialized and random_mask borrow the masks of the arm 'ticket': add it.")

    def trials(self) -> list[Trial]:
        """Every run, those that others wait for first."""
        dense = [Trial("dense", 1.0, seed) for seed in self.seeds]
        levels = [(left, self.seeds) for left in self.deciding] + [
            (left, self.seeds[:1]) for left in self.elsewhere
        ]
        return dense + [
            Trial(arm, left, seed)
            for left, seeds in sorted(levels, reverse=True)
            for seed in seeds
            for arm in self.arms
        ]

    def before(self, trial: Trial) -> Trial | None:
        """The run whose trained weights say which ones stay; None for a dense run."""
        if trial.arm == "dense":
            return None
        above = min((left for left in self.deciding if left > trial.left), default=1.0)
        arm = trial.arm if trial.arm in CHAINS else "ticket"
        return Trial("dense" if above == 1.0 else arm, above, trial.seed)

    def needs(self, trial: Trial) -> set[Trial]:
        """The runs that must be finished before this one can begin."""
        dense = {Trial("dense", 1.0, trial.seed)} if trial.arm == "rewound" else set()
        before = self.before(trial)
        return dense | ({before} if before else set())

    def folder(self) -> Path:
        """Where its runs are kept, in the user's cache: another plan has another folder."""
        return cache_folder() / "tickets" / f"{self.recipe.name}-{self.digest()}"

    def digest(self) -> str:
        """What the plan is known by: its recipe and all its settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]


def load_plan(name_or_path: str, **changes: Any) -> TicketPlan:
    """The plan of a recipe with a [tickets] table; `changes` replace what it says.

    Raises ConfigError for a recipe without the table or with a setting that is not known. Introduced in
    notebook 12.
    """
    known, needs = set(TicketPlan.__dataclass_fields__), {"deciding": "the shares that every seed runs with"}
    recipe, own = read_table(name_or_path, "tickets", known - {"recipe"}, needs, changes)
    fixed: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in own.items()
    }
    with kinds_of("tickets", recipe.name):
        plan = TicketPlan(recipe, **fixed)
        plan.trials()
    return plan


def initial(model: str, seed: int) -> nn.Module:
    """The network as it is before any training. Introduced in notebook 12."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(model)


def trained(plan: TicketPlan, trial: Trial, root: Path, file: str = "best.pt") -> nn.Module:
    """The network that a run left behind: "best.pt", or "rewind.pt" of a dense one.

    Introduced in notebook 12.
    """
    return load_best(build(plan.recipe.model), root / trial.name, file)


def start_of(plan: TicketPlan, trial: Trial, root: Path) -> tuple[nn.Module, Masks]:
    """The weights that a run starts from and the masks that it keeps.

    ticket: first weights, own masks; rewound: weights after a few steps; retrained: trained weights;
    reinitialized: other first weights; random_mask: masks shuffled within each layer. Source: Frankle and
    Carbin 2019, Frankle et al. 2020 (rewinding), Renda et al. 2020 (retrained). Introduced in notebook 12.
    """
    before = plan.before(trial)
    if before is None:
        return initial(plan.recipe.model, trial.seed), {}
    teacher = trained(plan, before, root)
    masks = magnitude_masks(teacher, 1 - trial.left, within=masks_of(teacher))
    if trial.arm == "retrained":
        return teacher, masks
    if trial.arm == "rewound":
        return trained(plan, Trial("dense", 1.0, trial.seed), root, "rewind.pt"), masks
    if trial.arm == "random_mask":
        masks = shuffled_masks(masks, seed=trial.seed)
    other = OTHER_START if trial.arm == "reinitialized" else 0
    return initial(plan.recipe.model, trial.seed + other), masks

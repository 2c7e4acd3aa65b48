"""Checkpoints of factorized networks: the weights, and in the index the plan of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from quantlib.compression.factorized import Plan, skeleton_of
from quantlib.errors import CheckpointError
from quantlib.subject.checkpoints import checkpoint_info, load_checkpoint
from quantlib.subject.models import build


def plain(plans: Mapping[str, Plan]) -> dict[str, list[Any]]:
    """Plans as lists, fit for JSON.

    >>> plain({"conv": Plan("tucker2", (16, 8))})
    {'conv': ['tucker2', [16, 8]]}
    """
    return {
        name: [plan.method, list(plan.rank) if isinstance(plan.rank, tuple) else plan.rank]
        for name, plan in plans.items()
    }


def from_plain(entries: Mapping[str, Sequence[Any]]) -> dict[str, Plan]:
    """The plans that `plain` wrote.

    >>> from_plain({"conv": ["tucker2", [16, 8]]})
    {'conv': Plan(method='tucker2', rank=(16, 8))}
    """
    return {
        name: Plan(method, tuple(rank) if isinstance(rank, (list, tuple)) else int(rank))
        for name, (method, rank) in entries.items()
    }


def load_factorized(name: str, root: Path | None = None) -> nn.Module:
    """A factorized network by its name in checkpoints/index.json, in eval mode, float32, channels-last.

    Raises CheckpointError when it is missing, damaged, or not factorized. Introduced in notebook 17.
    """
    info = checkpoint_info(name, root)
    if "plans" not in info:
        raise CheckpointError(f"{name} is not factorized; load it with load_checkpoint.")
    return load_checkpoint(name, root, skeleton_of(build(info["model"]), from_plain(info["plans"])))

"""What a command makes before it trains, kept in its folder: a start, and one whose blocks have learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantlib.compression.blockwise import Learned, Lesson, teach_blocks
from quantlib.compression.pruning import Masks
from quantlib.subject.allocator import keep_freed_memory
from quantlib.subject.command import check_start
from quantlib.subject.data import Images, batches
from quantlib.subject.files import replace_atomically

REPAIR_IMAGES = 4096
"""Training images that blocks learn from, unless told otherwise: more images help more than more steps."""


def kept_start(
    path: Path, made: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """What `make` makes, from `path` where an earlier call with the same options has put it.

    made: the options, plain data. Raises ConfigError when the file was made with others. Introduced in
    notebook 14.
    """
    if path.exists():
        found: dict[str, Any] = torch.load(path, weights_only=True)
        check_start(path, found["made"], made)
        return found
    found = {**make(), "made": dict(made)}
    with replace_atomically(path) as aside:
        torch.save(found, aside)
    return found


def repaired(
    network: nn.Module, teacher: nn.Module, images: Images, lesson: Lesson, path: Path,
    made: Mapping[str, Any], masks: Masks | None = None, device: str = "cpu",
) -> nn.Module:  # fmt: skip
    """`network`, in place, after `teach_blocks` on these images; or as `path` has it from an earlier call.

    made: what else the result depends on, as of `kept_start`. Introduced in notebook 11.
    """

    def learn() -> dict[str, Any]:
        keep_freed_memory()  # or half of the time goes into getting the same memory again
        x = torch.cat([x for x, _ in batches(images)]).to(device)
        teach_blocks(network.to(device), teacher.to(device), x, lesson, masks, told=_tell)
        return {"state": network.cpu().state_dict()}

    kept = kept_start(path, {**made, **asdict(lesson), "taught_on": len(images)}, learn)
    network.load_state_dict(kept["state"])
    return network


def _tell(report: Learned) -> None:
    """One line, as soon as a block is done."""
    before, after = f"{report.error_before:.4f}", f"{report.error_after:.4f}"
    print(f"{report.piece}: relative error {before} to {after} in {report.seconds:.0f} s", flush=True)

"""How a session finds its device, and the same random numbers every time."""

import random

import numpy as np
import torch

from quantlib.errors import StudyError


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - also what others draw from the global generator
    torch.manual_seed(seed)


def require_device(name: str) -> str:
    """The device's name, if it is there; StudyError otherwise."""
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise StudyError(f"There is no device {name!r}; use cpu or cuda.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise StudyError("There is no CUDA device on this machine; use DEVICE = 'cpu'.")
    return name


__all__ = ["require_device", "seed_everything"]

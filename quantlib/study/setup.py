"""How a session gets the same random numbers every time."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - also what others draw from the global generator
    torch.manual_seed(seed)

"""torch.compile where it works."""

from typing import cast

import torch
from torch import nn

from quantlib.subject.modes import answering


def compiled(model: nn.Module, device: torch.device, enabled: bool) -> nn.Module:
    """Compile `model` and run it once; fall back to the plain model where no compiler works."""
    if not enabled:
        return model
    candidate = cast(nn.Module, torch.compile(model, dynamic=False))
    try:
        # In train mode these zeros would enter the statistics of the batch norms.
        with answering(model), torch.no_grad():
            candidate(torch.zeros(2, 3, 32, 32, device=device).to(memory_format=torch.channels_last))
    except Exception as error:  # the compiler's own errors are of many kinds
        print(f"torch.compile does not work here ({type(error).__name__}); training goes on without it")
        return model
    return candidate

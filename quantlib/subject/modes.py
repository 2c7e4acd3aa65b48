"""A network that only answers for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def answering(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model into eval mode; at the end each module is back in its own mode, after an error as well.

    `model.train()` would not do: a batch norm that is frozen while the rest trains would begin to learn.
    Introduced in notebook 01.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    >>> with answering(network) as quiet:
    ...     quiet[0].training
    False
    >>> [module.training for module in network.modules()]
    [True, True, False]
    """
    learning = [module for module in model.modules() if module.training]
    try:
        yield model.eval()
    finally:
        for module in learning:
            module.training = True

"""A network as a graph by torch.fx, and what is said where that fails."""

from __future__ import annotations

import copy

from torch import fx, nn

from quantlib.errors import ConfigError, UnsupportedOperatorError
from quantlib.quantization.canonical import KEPT


class _Tracer(fx.Tracer):
    """Does not look inside our own operators, so that a fused graph can be traced again."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in KEPT or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """The network's graph, on a deep copy: `model` itself is never changed.

    Raises ConfigError in train mode, where batch norm is not yet a fixed affine map, and
    UnsupportedOperatorError when the control flow depends on the data. Introduced in notebook 06.
    """
    if any(module.training for module in model.modules()):
        raise ConfigError("The model is in train mode; call model.eval() first.")
    if any(module._forward_pre_hooks and "weight" not in module._parameters for module in _weighted(model)):
        raise UnsupportedOperatorError(
            "A weight is made anew by a hook before each pass (pruning, weight norm); make it permanent "
            "first, for example by torch.nn.utils.prune.remove."
        )
    tracer = _Tracer()
    try:
        model = copy.deepcopy(model)
        graph = tracer.trace(model)
        traced = fx.GraphModule(tracer.root, graph, type(model).__name__)
    except Exception as error:  # torch.fx fails in as many ways as there are models
        raise untraceable(model, error) from error
    return traced.eval()


def _weighted(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def untraceable(model: nn.Module, error: Exception) -> UnsupportedOperatorError:
    """What to raise where torch.fx has failed on a model."""
    return UnsupportedOperatorError(
        f"torch.fx cannot trace {type(model).__name__} ({error}); "
        "remove what depends on the data from its forward, and rename what is no name in Python."
    )

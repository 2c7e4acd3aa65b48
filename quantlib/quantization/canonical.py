"""Which module stands for a traced node: the many spellings of an operator, reduced to one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from quantlib.quantization.fused import (
    Concat,
    Flatten,
    FusedAdd,
    FusedConv2d,
    FusedLinear,
    fused_conv,
    fused_linear,
)

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
"""Poolings that have an integer form."""
RELUS = (nn.ReLU, nn.ReLU6)
"""ReLUs that have an integer form."""
KEPT = (FusedConv2d, FusedLinear, FusedAdd, Concat, Flatten, nn.BatchNorm1d, nn.BatchNorm2d)
"""Modules that are already in canonical form (batch norm until it is folded)."""

ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
"""Every spelling of an addition."""
RELU_CALLS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
"""Every spelling of a ReLU as a call."""
CATS = (torch.cat, torch.concat, torch.concatenate)
"""Every spelling of a concatenation."""
DROPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
"""Modules that do nothing in eval mode."""
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem)
"""Calls that overwrite their first input and whose names do not say so."""
POOL_CALLS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.max_pool2d: (
        nn.MaxPool2d,
        ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    ),
    F.avg_pool2d: (
        nn.AvgPool2d,
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
}
"""Every spelling of a pooling as a call: its module, and the names of its arguments."""
POOL_CALLS[torch.max_pool2d] = POOL_CALLS[F.max_pool2d]
KIND_OF: dict[type[nn.Module], str] = {
    FusedConv2d: "conv",
    FusedLinear: "linear",
    FusedAdd: "add",
    Concat: "concat",
    Flatten: "flatten",
    **dict.fromkeys(POOLS, "pool"),
    **dict.fromkeys(RELUS, "relu"),
}
"""Operator kind of each canonical module; also the name of an operator that had none in the model."""


def kind(node: fx.Node) -> str:
    """Operator kind of a node: conv, linear, add, concat, pool, relu, flatten; "" for anything else."""
    if node.op != "call_module":
        return ""
    module = module_of(node)
    return "" if canonical_modules(module) is None else KIND_OF.get(type(module), "")


def module_of(node: fx.Node) -> nn.Module:
    """The module that a call_module node calls."""
    root = node.graph.owning_module
    assert root is not None
    return root.get_submodule(str(node.target))


def scope(node: fx.Node) -> str:
    """Path of the module in whose forward the node runs; "" at the top."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """The tensors that an operator reads, in order."""
    if node.target in CATS:
        first = node.args[0] if node.args else node.kwargs.get("tensors")
        return (
            [item for item in first if isinstance(item, fx.Node)] if isinstance(first, (list, tuple)) else []
        )
    if node.target in ADDS:
        return [item for item in (*node.args, *node.kwargs.values()) if isinstance(item, fx.Node)]
    if node.op == "call_module":
        return [item for item in (*node.args, *node.kwargs.values()) if isinstance(item, fx.Node)]
    first = node.args[0] if node.args else node.kwargs.get("input")
    return [first] if isinstance(first, fx.Node) else []


def works_in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the operator overwrites its first input; torch ends such names in one underscore."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    overwrites = name.endswith("_") and not name.endswith("__")
    told = node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None
    return overwrites or told or node.target in IN_PLACE


def modules_for(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[nn.Module] | None:
    """The canonical modules that do what `node` does, one after the other; [] to drop it, None if unknown."""
    if node.op == "call_module":
        return canonical_modules(modules[str(node.target)])
    if node.op not in ("call_function", "call_method") or not tensor_inputs(node):
        return None
    for targets, build in CALLS:
        if node.target in targets:
            return build(node)
    return None


def canonical_modules(module: Any) -> list[nn.Module] | None:
    """The canonical form of one module; [] to drop it, None if unknown."""
    own = type(module)
    if own in DROPPED:
        return []
    if own in RELUS:
        return [own()]
    if own is nn.Conv2d:
        return _conv(module)
    if own is nn.Linear:
        return [fused_linear(module)]
    if own is nn.Flatten:
        return [Flatten()] if (module.start_dim, module.end_dim) == (1, -1) else None
    if own is nn.MaxPool2d and module.return_indices:
        return None
    return [module] if own in POOLS or own in KEPT else None


def _conv(conv: nn.Conv2d) -> list[nn.Module] | None:
    """Only zero padding, the same on both sides, is something that integer kernels do."""
    before_and_after = conv._reversed_padding_repeated_twice
    left, top = before_and_after[0::2], before_and_after[1::2]
    if conv.padding_mode != "zeros" or left != top:
        return None
    fused = fused_conv(conv)
    fused.padding = tuple(reversed(left))
    return [fused]


def _add(node: fx.Node) -> list[nn.Module] | None:
    plain = len(tensor_inputs(node)) == 2 == len(node.args) + len(node.kwargs)
    return [FusedAdd()] if plain else None


def _cat(node: fx.Node) -> list[nn.Module] | None:
    dim = _argument(node, 1, 0, "dim", "axis")
    known = isinstance(dim, int) and _knows(node, "tensors", "dim", "axis")
    # Not along the batch: engines take a large batch in parts, and each part would be joined by itself.
    return [Concat(dim)] if known and dim not in (0, -4) else None


def _argument(node: fx.Node, place: int, default: Any, *names: str) -> Any:
    """An argument of a call by its place or by a name: torch takes numpy's, axis and keepdims, as well."""
    if len(node.args) > place:
        return node.args[place]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def _knows(node: fx.Node, *names: str) -> bool:
    """Whether a call has no other keywords than these: what is not understood is not left out."""
    return set(node.kwargs) <= set(names)


def _pool(node: fx.Node) -> list[nn.Module] | None:
    pool, names = POOL_CALLS[node.target]
    settings = dict(zip(names, node.args[1:], strict=False))
    settings |= {key: value for key, value in node.kwargs.items() if key != "input"}
    settings = {key: value for key, value in settings.items() if value is not None or key == "output_size"}
    if settings.pop("return_indices", False) or any(isinstance(v, fx.Node) for v in settings.values()):
        return None
    return [pool(**settings)] if set(settings) <= set(names) else None


def _mean(node: fx.Node) -> list[nn.Module] | None:
    """Only the mean over height and width is a pooling."""
    dims = _argument(node, 1, None, "dim", "axis")
    keep = _argument(node, 2, False, "keepdim", "keepdims")
    if not isinstance(dims, (list, tuple)) or sorted(dims) not in ([2, 3], [-2, -1]):
        return None
    if not _knows(node, "input", "dim", "axis", "keepdim", "keepdims"):
        return None
    return [nn.AdaptiveAvgPool2d(1)] if keep else [nn.AdaptiveAvgPool2d(1), Flatten()]


def _flatten(node: fx.Node) -> list[nn.Module] | None:
    start, end = _argument(node, 1, 0, "start_dim"), _argument(node, 2, -1, "end_dim")
    return [Flatten()] if (start, end) == (1, -1) else None


def _view(node: fx.Node) -> list[nn.Module] | None:
    """x.view(batch, -1), where batch was read from the tensor itself."""
    shape = node.args[1:] if len(node.args) != 2 else node.args[1]
    if isinstance(shape, (list, tuple)) and len(shape) == 2 and shape[1] == -1 and is_batch_size(shape[0]):
        return [Flatten()]
    return None


def _dropout(node: fx.Node) -> list[nn.Module] | None:
    """Nothing in eval mode; but F.dropout(x) alone drops in either mode."""
    return [] if _argument(node, 2, True, "training", "train") is False else None


def is_batch_size(value: Any) -> bool:
    """Whether a node is x.size(0) or x.shape[0]."""
    if not isinstance(value, fx.Node):
        return False
    if value.target == "size":
        return bool(len(value.args) == 2 and value.args[1] == 0)
    if value.target is operator.getitem and value.args[1] == 0 and isinstance(value.args[0], fx.Node):
        source: Any = value.args[0]
        return bool(source.target == "size" or (source.target is getattr and "shape" in source.args))
    return False


CALLS: tuple[tuple[tuple[Any, ...], Callable[[fx.Node], list[nn.Module] | None]], ...] = (
    (ADDS, _add),
    (CATS, _cat),
    (RELU_CALLS, lambda node: [nn.ReLU()]),
    ((F.relu6,), lambda node: [nn.ReLU6()]),
    (tuple(POOL_CALLS), _pool),
    ((torch.mean, "mean"), _mean),
    ((torch.flatten, "flatten"), _flatten),
    (("view", "reshape", torch.reshape), _view),
    ((F.dropout, F.dropout2d, torch.dropout), _dropout),
)
"""What each function or method becomes."""

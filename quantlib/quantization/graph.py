"""From any traceable CNN to one canonical form: batch norm folded, ReLU fused, every operator named."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from quantlib.errors import ConfigError, UnsupportedOperatorError
from quantlib.quantization.canonical import (
    KIND_OF,
    kind,
    module_of,
    modules_for,
    scope,
    tensor_inputs,
    works_in_place,
)
from quantlib.quantization.fused import FusedAdd, FusedConv2d, FusedLinear, shared_copy
from quantlib.quantization.tracing import trace

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
"""What is folded."""
CONVOLUTIONS = (nn.Conv2d, nn.Linear, FusedConv2d, FusedLinear)
"""What a batch norm is folded into."""


def fold_weights(
    weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm1d | nn.BatchNorm2d
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that does conv, then batch norm:

        r = rsqrt(var + eps);  W' = W * (gamma * r);  b' = (b - mean) * r * gamma + beta

    gamma and r have shape (out,), and scale whole output channels. Bit-equal to
    torch.nn.utils.fusion.fuse_conv_bn_weights. Raises UnsupportedOperatorError for a norm without running
    statistics. Introduced in notebook 06.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise UnsupportedOperatorError(
            "A batch norm without running statistics cannot be folded; train it with running statistics."
        )
    mean, var = norm.running_mean, norm.running_var
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias
    bias = torch.zeros_like(mean) if bias is None else bias
    r = torch.rsqrt(var + norm.eps)
    folded = weight * (gamma * r).reshape(-1, *[1] * (weight.dim() - 1))
    return folded, (bias - mean) * r * gamma + beta


def fold_batch_norm(model: nn.Module) -> fx.GraphModule:
    """A copy of the model whose batch norms are folded into the layers before them; nothing else changes.

    A batch norm that does not directly follow a convolution or a linear layer of its own stays.
    Introduced in notebook 06.
    """
    traced = trace(model)
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        _show_overwriting(node, modules)
    _fold(traced)
    return _finished(traced)


def fuse(model: nn.Module, relu: bool = True, unsupported: str = "error") -> fx.GraphModule:
    """The canonical form of the model: what `prepare` works on.

    Every operator is a module: FusedConv2d, FusedLinear, FusedAdd (each with its ReLU inside), a pooling,
    a ReLU that has no partner, Concat, Flatten. Dropout and Identity are gone. Layers keep their names
    ("layer1.0.conv1"); what had no name gets one from where it happens ("layer1.0.add").
    `relu=False` leaves every ReLU on its own (notebook 06). `unsupported="float"` leaves unknown operators
    as they are; "error" raises UnsupportedOperatorError that lists them all. Introduced in notebook 06.
    """
    if unsupported not in ("error", "float"):
        raise ConfigError(f"unsupported must be 'error' or 'float', not {unsupported!r}.")
    fused = trace(model)
    _canonicalize(fused)
    _fold(fused)
    problems = _left_over(fused)
    if problems and unsupported == "error":
        raise UnsupportedOperatorError(
            f"quantlib cannot quantize {'; '.join(problems)}: replace them, "
            "or pass unsupported='float' to leave them in float32."
        )
    if relu:
        _fuse_relu(fused)
    fused.meta["canonical"] = True
    return _finished(fused)


def canonical_copy(model: nn.Module, unsupported: str = "error") -> fx.GraphModule:
    """A canonical network of the caller's own: a copy of one, or the model fused."""
    return copy.deepcopy(model) if is_canonical(model) else fuse(model, unsupported=unsupported)  # type: ignore[return-value]


def is_canonical(model: nn.Module) -> bool:
    """Whether `fuse` made this graph."""
    return isinstance(model, fx.GraphModule) and bool(model.meta.get("canonical"))


def unsupported(model: nn.Module) -> list[str]:
    """Every operator that has no integer form, as "node (operator) at layer"; empty when all is well."""
    if is_canonical(model):
        return _left_over(model)  # type: ignore[arg-type]
    traced = trace(model)
    _canonicalize(traced)
    _fold(traced)
    return _left_over(traced)


def _canonicalize(traced: fx.GraphModule) -> None:
    """Replace every node that has canonical modules by them, one module object per call."""
    modules = dict(traced.named_modules())
    taken: set[str] = set()
    for node in list(traced.graph.nodes):
        replacement = modules_for(node, modules)
        inputs = tensor_inputs(node)
        if node.op == "call_module" and replacement is not None:
            node.args, node.kwargs = tuple(inputs), {}  # conv(input=x) is conv(x)
        _show_overwriting(node, modules)
        if replacement is None or _stands(node, replacement, modules, taken):
            continue
        last = inputs[0]
        for position, module in enumerate(replacement):
            if module is modules.get(str(node.target)):  # called again: a ReLU of its own, the same weights
                module = shared_copy(module)
            name = _name(node, module, modules, taken)
            traced.add_submodule(name, module)
            with traced.graph.inserting_before(node):
                last = traced.graph.call_module(name, tuple(inputs) if position == 0 else (last,))
            last.meta = dict(node.meta)
        node.replace_all_uses_with(last)
        traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()


def _stands(
    node: fx.Node, replacement: list[nn.Module], modules: dict[str, nn.Module], taken: set[str]
) -> bool:
    """Whether a node already calls its canonical module, for the first time; takes the name if so."""
    name = str(node.target)
    stands = node.op == "call_module" and replacement == [modules[name]] and name not in taken
    if stands:
        taken.add(name)
    return stands


def _show_overwriting(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """After an in-place operator, whoever reads its input reads its result.

    Where nobody reads either, what it overwrites has another name, x[:, :2] or a flattened x: the graph does
    not show who sees the change. Raises UnsupportedOperatorError then.
    """
    inputs = tensor_inputs(node)
    if node.op == "placeholder" or not inputs or not works_in_place(node, modules):
        return
    order = {each: position for position, each in enumerate(node.graph.nodes)}
    for user in list(inputs[0].users):
        if order[user] > order[node]:
            user.replace_input_with(inputs[0], node)
    if not node.users:
        raise UnsupportedOperatorError(
            f"{node.name} at {scope(node) or 'the top level'} changes a tensor in place, and its result is "
            "not read; assign it, as in x = torch.relu(x)."
        )


def _name(node: fx.Node, module: nn.Module, modules: dict[str, nn.Module], taken: set[str]) -> str:
    """The layer's own name, or "<where>.<kind>"; numbered when a module is called again."""
    if node.op == "call_module":
        base, reserved = str(node.target), taken
    else:
        where = scope(node)
        base = f"{where}.{KIND_OF[type(module)]}" if where else KIND_OF[type(module)]
        reserved = taken | set(modules)
    name, count = base, 0
    while name in reserved or (count and name in modules):
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    return name


def _fold(traced: fx.GraphModule) -> None:
    """Fold each batch norm into the layer that it alone reads."""
    targets = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or type(module_of(node)) not in BATCH_NORMS:
            continue
        source, norm = node.args[0], module_of(node)
        if source.op != "call_module" or len(source.users) > 1 or targets.count(source.target) > 1:
            continue
        layer = module_of(source)
        if type(layer) not in CONVOLUTIONS or getattr(layer, "relu", False) or norm.running_mean is None:
            continue
        if norm.num_features != len(layer.weight):  # type: ignore[arg-type]
            continue  # a norm over another axis than the layer's outputs
        if isinstance(norm, nn.BatchNorm1d):
            layer.rows_only = True  # type: ignore[assignment]
        with torch.no_grad():
            weight, bias = fold_weights(layer.weight, layer.bias, norm)  # type: ignore[arg-type]
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)


def _fuse_relu(fused: fx.GraphModule) -> None:
    """Put each ReLU inside the convolution, linear layer or addition that it alone reads."""
    for node in list(fused.graph.nodes):
        if kind(node) != "relu" or kind(node.args[0]) not in ("conv", "linear", "add"):
            continue
        source, operator = node.args[0], module_of(node.args[0])
        assert isinstance(operator, (FusedConv2d, FusedLinear, FusedAdd))
        if len(source.users) == 1 and not operator.relu:
            operator.relu = True
            operator.ceiling = 6.0 if isinstance(module_of(node), nn.ReLU6) else None
            node.replace_all_uses_with(source)
            fused.graph.erase_node(node)


def _left_over(traced: fx.GraphModule) -> list[str]:
    """Describe every node that is not canonical."""
    found = []
    for node in traced.graph.nodes:
        if node.op in ("placeholder", "output") or kind(node):
            continue
        if node.op == "get_attr":
            # Read by one of our operators it is no image's tensor, which an integer network has no step for.
            if any(kind(user) for user in node.users):
                found.append(f"{node.name} (a tensor of the model's own) at {node.target}")
        elif node.op == "call_module":
            found.append(f"{node.name} ({type(module_of(node)).__name__}) at {node.target}")
        else:
            called = (
                node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
            )
            found.append(f"{node.name} ({called}) at {scope(node) or 'the top level'}")
    return found


def _finished(traced: fx.GraphModule) -> fx.GraphModule:
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()
    return traced.eval()


__all__ = [
    "fold_batch_norm", "fold_weights", "fuse", "is_canonical", "kind", "module_of", "scope", "trace",
    "unsupported",
]  # fmt: skip

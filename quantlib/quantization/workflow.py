"""The three verbs: prepare (place the observers), calibrate (show them data), convert (make integers)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from quantlib.errors import ConfigError, UnsupportedOperatorError
from quantlib.progress import progress
from quantlib.quantization.affine import QParams
from quantlib.quantization.graph import fuse, is_canonical, kind, module_of
from quantlib.quantization.observers import Observer
from quantlib.quantization.qconfig import FLOAT, QConfig, Scheme, check_name
from quantlib.quantization.sites import SHARING, check_ends, has_weight, is_site, naming, readers, site_name


class Prepared(nn.Module):
    """A float network that shows every tensor to its observer on the way: call it, or `calibrate` it.

    `activations`: observer by the name of the operator that makes the tensor, "input" for the images;
    `weights`: observer by layer name, already filled; `graph`: the fused float network.
    Exchange an observer by `set_observer`. Introduced in notebook 07.
    """

    def __init__(self, graph: fx.GraphModule, qconfig: QConfig) -> None:
        super().__init__()
        self.graph_module, self.qconfig = graph, qconfig
        self.activations: dict[str, Observer] = {}
        self.weights: dict[str, Observer] = {}
        self._place_observers()

    @property
    def graph(self) -> fx.Graph:
        """The fused graph, whose node names the observers' names come from."""
        return self.graph_module.graph

    def _place_observers(self) -> None:
        # A pooling or flattening keeps the grid of its input: a setting for it would do nothing.
        named = (node for node in self.graph.nodes if node.op != "output" and kind(node) not in SHARING)
        self.qconfig.check_names(site_name(node) for node in named)
        for node in self.graph.nodes:
            config = self.qconfig.for_layer(site_name(node), kind(node))
            if has_weight(node) and config.weight is not None:
                observer = config.weight.observer_instance(axis=0)
                with naming(f"the weight of {str(node.target)!r}"):
                    observer(module_of(node).weight)
                self.weights[str(node.target)] = observer
            scheme = self._activation_scheme(node, config)
            if scheme is not None and is_site(node, self.qconfig.quantize_output):
                self.activations[site_name(node)] = scheme.observer_instance(axis=1)

    def _activation_scheme(self, node: fx.Node, config: QConfig) -> Scheme | None:
        """The scheme of a node's output; a layer left in float32 obliges the integer layers that read it."""
        if config is not FLOAT:
            return config.activation
        reading = [reader for reader in readers(node) if kind(reader)]  # what stays in float32 has no kind
        configs = [self.qconfig.for_layer(site_name(reader), kind(reader)) for reader in reading]
        return next((wish.activation for wish in configs if wish.weight is not None), None)

    def set_observer(self, name: str, observer: Observer) -> None:
        """Put another observer in the place of the activation observer `name`; ConfigError if unknown."""
        check_name(name, self.activations, "activation")
        self.activations[name] = observer

    def forward(self, x: Tensor) -> Tensor:
        """The float network's output; every tensor on the way is observed."""
        return _Watching(self.graph_module, self.activations).run(x)

    def qparams(self, name: str) -> QParams:
        """The grid of the activation `name`, as observed; the error names the layer."""
        with naming(f"the activation {name!r}"):
            return self.activations[name].qparams()

    def tensor_grid(self, name: str) -> QParams:
        """The grid of the activation `name` for kernels that want one a tensor; ConfigError for another."""
        grid = self.qparams(name)
        if grid.axis is not None:
            raise ConfigError(
                f"Integer kernels need one grid per tensor; activation {name!r} has one per channel; give it "
                "Scheme(per_channel=False)."
            )
        return grid

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Prepared:
        """Observers follow the network to another device, though they are no submodules of it."""
        for observer in (*self.activations.values(), *self.weights.values()):
            observer._apply(fn)
        return super()._apply(fn, recurse)  # type: ignore[return-value]


class _Watching(fx.Interpreter):
    """Runs the graph node by node and shows each result to its observer."""

    def __init__(self, graph: fx.GraphModule, observers: dict[str, Observer]) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # a sentence of ours is not to be followed by a page of fx's
        self.observers = observers

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        observer = self.observers.get(site_name(n)) if n.op != "output" else None
        if observer is not None:
            with naming(f"the activation {site_name(n)!r}"):
                observer(value)
        return value


def prepare(
    model: nn.Module,
    qconfig: QConfig | None = None,
    example: Tensor | None = None,
    unsupported: str = "error",
) -> Prepared:
    """Fuse a copy of `model` and place an observer on every tensor that will become integers.

    `example`: one batch; the fused network is then checked to agree with the model on it.
    `unsupported="float"` leaves unknown operators in float32. A graph that `fuse` made is taken as it is.
    Raises ConfigError (train mode, unknown layer names), UnsupportedOperatorError (all nodes listed),
    NonFiniteError (a weight that is not finite). Introduced in notebook 07.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"prepare needs a network (torch.nn.Module), not {type(model).__name__}.")
    if qconfig is not None and not isinstance(qconfig, QConfig):
        name = type(qconfig).__name__
        raise ConfigError(f"qconfig must be a QConfig, not {name}; write QConfig(activation=...).")
    if example is not None and not (isinstance(example, Tensor) and example.is_floating_point()):
        raise ConfigError("The example must be one float tensor, a batch of images.")
    graph = model if is_canonical(model) else fuse(model, unsupported=unsupported)
    assert isinstance(graph, fx.GraphModule)
    check_ends(graph.graph)
    prepared = Prepared(graph, QConfig() if qconfig is None else qconfig).eval()
    if example is not None:
        if not example.numel() or not bool(torch.isfinite(example).all()):
            raise ConfigError("The example must be a batch of finite images; it is empty or not finite.")
        _check_example(model, graph, example)
    return prepared


def _check_example(model: nn.Module, graph: nn.Module, example: Tensor) -> None:
    with torch.no_grad():
        wanted, got = model(example), graph(example)
    if not torch.allclose(wanted, got, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())):
        raise UnsupportedOperatorError(
            "The traced network does not compute what the model computes on the example; "
            "look for in-place changes or branches on the data in its forward."
        )


def calibrate(prepared: Prepared, batches: Iterable[Any], dtype: torch.dtype = torch.float32) -> Prepared:
    """Show `batches` (of x, or of (x, label)) to the observers, without gradients; returns `prepared`.

    `dtype`: torch.bfloat16 lets convolutions and matrix products run in bfloat16, where the machine has
    instructions for it (`quantlib.subject.benchmark.bfloat16_is_fast`) in half the time; the observers then
    see values rounded to 8 significant bits, and a range moves by up to 1 part in 256.
    Raises ConfigError when there is no batch at all or for another dtype, NonFiniteError with the layer's
    name when a tensor holds NaN or infinity. Introduced in notebook 07.
    """
    if not isinstance(prepared, Prepared):
        raise ConfigError("calibrate needs what prepare returned; call prepare(model, qconfig) first.")
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        given = type(batches).__name__.lower()
        raise ConfigError(f"calibrate needs an iterable of batches, not one {given}; pass [x].")
    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"calibrate runs in torch.float32 or torch.bfloat16, not in {dtype}.")
    seen, device = 0, next((p.device.type for p in prepared.parameters()), "cpu")
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        for batch in progress(batches, desc="calibrate", unit="batch"):
            x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(x, Tensor):
                name = type(x).__name__
                raise ConfigError(f"A batch must be a tensor of images, or (images, labels), not {name}.")
            prepared(x)
            seen += 1
    if not seen:
        raise ConfigError("calibrate got no batches; pass an iterable with at least one.")
    return prepared


def convert(
    prepared: Prepared, kind: str = "simulated", rounding: str | None = None, engine: str | None = None
) -> nn.Module:
    """The quantized network, from what the observers saw; `prepared` stays as it is.

    kind: "simulated" (fake-quantized float32, trainable), "mixed" (int8 arithmetic, float32 borders) or
    "integer" (integers from the first layer to the last), which alone takes two more settings:
    `rounding`: "float" (default), "gemmlowp" or "single_rounding"; `engine`: "reference" (exact, readable),
    "onnxruntime" (fast; rounds as "float", bit for bit), "openvino" (fastest; single integers one step off),
    or "auto" (default: "onnxruntime" where it is installed and fits, else "reference").
    Raises NotCalibratedError before calibrate, ConfigError for another kind, rounding or engine, or for one
    of the two with another kind. Introduced in notebook 07; "integer" in notebook 08.
    """
    from quantlib.quantization.mixed import to_mixed  # they are built on this module
    from quantlib.quantization.simulated import to_simulated

    if not isinstance(prepared, Prepared):
        raise ConfigError("convert needs what prepare returned: prepare, calibrate, then convert.")
    check_name(kind, ("simulated", "mixed", "integer"), "kind")
    if kind == "integer":
        return _to_integer(prepared, rounding or "float", engine or "auto")
    if rounding is not None or engine is not None:
        raise ConfigError(f"kind={kind!r} takes no rounding and no engine; only kind='integer' does.")
    return to_simulated(prepared) if kind == "simulated" else to_mixed(prepared)


def _to_integer(prepared: Prepared, rounding: str, engine: str) -> nn.Module:
    """The exact reference, or the engine that wraps it."""
    from quantlib.quantization.integer import to_integer

    check_name(engine, ("auto", "reference", *RUNTIMES), "engine")
    if engine in RUNTIMES and rounding != "float":
        raise ConfigError(
            f"{RUNTIMES[engine]} rounds as 'float', not as {rounding!r}; use engine='reference' for that."
        )
    reference = to_integer(prepared, rounding)
    if engine == "reference":
        return reference
    from quantlib.quantization.integer_engine import Engine
    from quantlib.quantization.integer_openvino import OpenVinoEngine

    if engine == "openvino":
        return OpenVinoEngine(reference)
    try:
        return Engine(reference)
    except ConfigError:  # ONNX Runtime is not installed, or cannot do this rounding or layer
        if engine == "onnxruntime":
            raise
        return reference


RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
"""The engines that are somebody else's runtime, and their names."""

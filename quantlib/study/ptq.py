"""One setting of post-training quantization, from plain data to a prediction for every image.

A setting is a dict of plain values, so that it fits into a table, a journal, and a message to another
machine. Its columns are those of SETTING.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from torch import fx, nn

from quantlib.quantization.graph import fuse, kind
from quantlib.quantization.low_bits import ACTIVATION_OBSERVER, FLOAT_BITS, first_and_last
from quantlib.quantization.observers import Observer
from quantlib.quantization.qconfig import QConfig, Scheme, check_name
from quantlib.quantization.sites import site_name, source
from quantlib.quantization.workflow import Prepared, calibrate, convert, prepare
from quantlib.study.sweep import Setting
from quantlib.subject import data
from quantlib.subject.checkpoints import load_checkpoint
from quantlib.subject.data import Images, batches
from quantlib.subject.evaluation import Evaluation, classes, evaluate, predictions_of

SETTING: dict[str, Any] = {
    "bits_weight": 8, "bits_fc": 8, "bits_activation": 8, "granularity": "per_channel",
    "observer_weight": "minmax", "observer_activation": ACTIVATION_OBSERVER, "ends": "same", "draw": 0,
    "kind": "integer",
}  # fmt: skip
"""Every column of a setting, with what it is when nothing is said.

bits_weight: of the convolutions; bits_fc: of the linear layers; bits_activation: of every tensor between;
32 leaves a side in float32. granularity: "per_channel" or "per_tensor", of the weights. ends: "same", or "8"
for 8 bits in the first and the last layer, weights and what they read. draw: seed of the calibration images.
kind: as in `convert`. The observers are those that lost least on validation images at few bits (notebooks 02
and 03). Introduced in notebook 09.
"""


def setting(**columns: Any) -> dict[str, Any]:
    """SETTING with some columns changed; bits_fc follows bits_weight unless given. ConfigError if unknown.

    Introduced in notebook 09.

    >>> setting(bits_weight=4, ends="8")["bits_fc"]
    4
    """
    for name in columns:
        check_name(name, SETTING, "column of a setting")
    columns.setdefault("bits_fc", columns.get("bits_weight", SETTING["bits_weight"]))
    return {**SETTING, **columns}


def qconfig(chosen: Setting, graph: fx.Graph, ratios: int = 100) -> QConfig:
    """The QConfig of a setting for a canonical graph. `ratios`: clip ratios that weights of "mse" try."""
    options = {"ratios": ratios} if chosen["observer_weight"] == "mse" else {}

    def weight(bits: int) -> Scheme | None:
        per_channel = chosen["granularity"] == "per_channel"
        return None if bits == FLOAT_BITS else Scheme(
            bits, symmetric=True, per_channel=per_channel, narrow_range=True,
            observer=chosen["observer_weight"], options=options,
        )  # fmt: skip

    def activation(bits: int) -> Scheme | None:
        return None if bits == FLOAT_BITS else Scheme(bits, observer=chosen["observer_activation"])

    inner = activation(chosen["bits_activation"])
    by_name = {}
    if chosen["ends"] == "8":
        outer = None if inner is None else activation(8)
        for node in first_and_last(graph):
            by_name[site_name(node)] = QConfig(weight(8), inner)
            read = source(node.args[0])  # type: ignore[arg-type]
            bits = chosen["bits_fc"] if kind(read) == "linear" else chosen["bits_weight"]
            by_name[site_name(read)] = QConfig(weight(bits), outer)
    return QConfig(
        weight(chosen["bits_weight"]), inner, by_name=by_name,
        by_type={"linear": QConfig(weight(chosen["bits_fc"]), inner)},
    )  # fmt: skip


@dataclass(frozen=True)
class PostTraining:
    """Evaluates settings of one trained network; called with one, it gives {"predictions": "3805..."}.

    It is small and loads network and images when first used, in whatever process that is, so it can be sent
    to a worker. One calibration run serves every number of bits, and the range of a weight is searched once.
    `images_calibration` and `images_test` as `Session.images` draws them; `ratios`: see `qconfig`.
    Introduced in notebook 09.
    """

    source: str
    images_calibration: int
    images_test: int
    network: str = "resnet50"
    ratios: int = 100
    split: str = "test"

    def __call__(self, chosen: Setting) -> dict[str, Any]:
        """The predicted class of every image, one digit each."""
        return {"predictions": predictions_of(evaluate(self.quantized(chosen), self.images()))}

    def images(self) -> Images:
        """The images to be classified."""
        return split_images(self.split, self.source, self.images_test, 0)

    def evaluation(self, result: Setting) -> Evaluation:
        """The Evaluation behind a result."""
        return Evaluation.of(classes(result["predictions"]), self.images().labels.numpy())

    def quantized(self, chosen: Setting) -> nn.Module:
        """The network that a setting describes."""
        return convert(self.prepared(chosen), kind=chosen["kind"])

    def prepared(self, chosen: Setting) -> Prepared:
        """Observers in place and calibrated, as the setting says."""
        graph = trained_graph(self.network)
        prepared = prepare(graph, qconfig(chosen, graph.graph, self.ratios))
        settle_weights(prepared, self.network, self.ratios)
        if prepared.activations:
            drawn = (self.source, self.images_calibration, chosen["draw"])
            seen = calibrated(trained_graph, (self.network,), chosen["observer_activation"], *drawn)
            take_ranges(prepared, seen)
        return prepared


_SETTLED: dict[Any, Observer] = {}
"""Weight observers that have chosen their range, which takes seconds for a whole network."""


def settle_weights(prepared: Prepared, *known: Any) -> None:
    """Let every weight observer choose its range, once; `known`: what decides it besides the observer."""
    for name, observer in prepared.weights.items():
        key = (*known, name, type(observer), observer.extra_repr())
        if key not in _SETTLED:
            _SETTLED[key] = observer.settle()
        prepared.weights[name] = _SETTLED[key]


def take_ranges(prepared: Prepared, seen: Prepared) -> None:
    """Give every activation the observer of the calibrated `seen`, at its own number of bits."""
    for name, observer in prepared.activations.items():
        prepared.set_observer(name, seen.activations[name].with_bits(observer.bits))


@cache
def trained_graph(network: str) -> fx.GraphModule:
    """The canonical graph of one of our checkpoints. Notebook 09."""
    return fuse(load_checkpoint(network).eval())


@cache
def split_images(split: str, source: str, count: int, draw: int) -> Images:
    """`count` images of a split, or all; kept, because every setting asks again. Notebook 09."""
    return data.load(split, source=source).sample(count, seed=draw)


@lru_cache(maxsize=2)
def calibrated(
    graph_of: Callable[..., fx.GraphModule], network: tuple[Any, ...], observer: str,
    source: str, count: int, draw: int,
) -> Prepared:  # fmt: skip
    """Observers that have seen the calibration images, at 8 bits; the graph is `graph_of(*network)`."""
    prepared = prepare(graph_of(*network), QConfig(None, Scheme(observer=observer)))
    return calibrate(prepared, batches(split_images("calibration", source, count, draw)))

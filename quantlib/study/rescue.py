"""The ladder of rescue methods: bits and a method, from plain data to predictions and minutes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import fx

from quantlib.quantization.equalization import equalize, unbalance
from quantlib.quantization.low_bits import ACTIVATION_OBSERVER, Counts, counts, low_bit_qconfig
from quantlib.quantization.qconfig import QConfig, check_name
from quantlib.quantization.reconstruction import (
    LONG,
    Recipe,
    Report,
    Store,
    correct_bias,
    reconstruct,
    round_weights,
)
from quantlib.quantization.workflow import Prepared, convert, prepare
from quantlib.study import ptq
from quantlib.study.digests import code_digest
from quantlib.study.ptq import split_images
from quantlib.study.sweep import Setting
from quantlib.subject.allocator import keep_freed_memory
from quantlib.subject.benchmark import bfloat16_is_fast
from quantlib.subject.data import Images, batches
from quantlib.subject.evaluation import Evaluation, classes, evaluate, predictions_of
from quantlib.subject.layout import cache_folder


@dataclass(frozen=True)
class Method:
    """Steps in their order: equalize, round (one of WEIGHT_ROUNDINGS), learn by the recipe, correct biases.

    narrow, weights: the grid of the weights, without its lowest integer or with it, and who finds its range.
    """

    equalize: bool = False
    recipe: Mapping[str, Any] | None = None
    bias: bool = False
    rounding: str = "nearest"
    narrow: bool = False
    weights: str = "mse"


ALL = {"ranges": True, "scales": True, "biases": True}
"""Everything beside the rounding that a recipe may learn."""


METHODS: dict[str, Method] = {
    "nearest": Method(),
    "nearest_narrow": Method(narrow=True),
    "nearest_minmax": Method(narrow=True, weights="minmax"),
    "equalization": Method(equalize=True),
    "bias_correction": Method(bias=True),
    "balanced": Method(rounding="balanced"),
    "balanced_narrow": Method(rounding="balanced", narrow=True),
    "balanced_bias": Method(rounding="balanced", bias=True),
    "learned_ranges": Method(recipe={"rounding": False, "ranges": True}),
    "adaround": Method(recipe={"granularity": "layer"}),
    "brecq": Method(recipe={}),
    "brecq_ranges": Method(recipe={"ranges": True}),
    "qdrop": Method(recipe={"drop": 0.5, "ranges": True}),
    "brecq_all": Method(recipe=ALL),
    "qdrop_all": Method(recipe={"drop": 0.5, **ALL}),
    "qdrop_all_narrow": Method(recipe={"drop": 0.5, **ALL}, narrow=True),
    "equalized_all": Method(True, ALL),
    "all_corrected": Method(recipe=ALL, bias=True),
    "balanced_all": Method(recipe=ALL, rounding="balanced"),
    "balanced_all_narrow": Method(recipe=ALL, rounding="balanced", narrow=True),
}
"""Every method of the ladder, single ones first, then stacked. Introduced in notebook 10."""

RESCUE: dict[str, Any] = {
    "rescue": "nearest", "bits_weight": 4, "bits_fc": 4, "bits_activation": 4, "allocation": "uniform",
    "ends": "8", "kind": "mixed", "spread": 1.0, "iterations": 0, "draw": 0,
    "observer": ACTIVATION_OBSERVER,
}  # fmt: skip
"""Every column of a setting, with what it is when nothing is said.

rescue: one of METHODS; bits_*, ends, kind, draw: as in `quantlib.study.ptq.SETTING`, but ends at 8 bits and
adds in float32 ("mixed") unless said, which is how the published numbers are meant; allocation: "uniform",
or JSON of {"weight": {layer: bits}, "activation": {tensor: bits}}; spread: how badly the channels are scaled
on purpose beforehand, 1 for not at all; iterations of a unit, for the methods that learn; observer: of the
activations, whose ranges every method starts from.
"""


def rescue_setting(**columns: Any) -> dict[str, Any]:
    """RESCUE with some columns changed; bits_fc follows bits_weight unless given. ConfigError if unknown.

    Methods that learn nothing have 0 iterations, whatever is said. Introduced in notebook 10.

    >>> rescue_setting(rescue="bias_correction", bits_weight=3, iterations=500)["iterations"]
    0
    """
    for name in columns:
        check_name(name, RESCUE, "column of a setting")
    columns.setdefault("bits_fc", columns.get("bits_weight", RESCUE["bits_weight"]))
    chosen = {**RESCUE, **columns}
    check_name(chosen["rescue"], METHODS, "method")
    if METHODS[chosen["rescue"]].recipe is None:
        chosen["iterations"] = 0
    return chosen


NAN = float("nan")
"""No limit was set."""
TARGETS: dict[str, tuple[dict[str, Any], float]] = {
    "w6a6": ({"bits_weight": 6, "bits_activation": 6}, 0.15),
    "w4a8": ({"bits_weight": 4, "bits_activation": 8}, 0.15),
    "w4a4": ({"bits_weight": 4, "bits_activation": 4}, 0.7),
    "w3a3": ({"bits_weight": 3, "bits_activation": 3}, 2.5),
    "w2a4": ({"bits_weight": 2, "bits_activation": 4}, 4.0),
    "w2a2": ({"bits_weight": 2, "bits_activation": 2}, NAN),
    "uniform 4": ({"ends": "same"}, NAN),
    "mixed 4": ({"ends": "same"}, 0.4),
    "conv 4, fc 2": (
        {"bits_weight": 4, "bits_fc": 2, "bits_activation": 32, "ends": "same", "kind": "simulated"}, 0.2,
    ),
}  # fmt: skip
"""What was to be reached: columns of a setting, and the points of accuracy it may lose. Notebook 10."""

EASY = ("w6a6", "w4a8", "uniform 4", "mixed 4", "conv 4, fc 2")
"""Targets near float32, which fewer iterations serve."""


@dataclass(frozen=True)
class Rescue:
    """Evaluates settings of one trained network; called with one, it gives predictions, minutes and reports.

    Small, and loads what it needs when first used, so that it can be sent to a worker. Finished units are
    kept in the user's cache, folder "rescue", and found there by whoever asks for the same. `only`: names of
    the units that are learned, None for all. Otherwise as `PostTraining`. Introduced in notebook 10.
    """

    source: str
    images_calibration: int
    images_test: int
    images_validation: int = 0
    network: str = "resnet50"
    ratios: int = 100
    batch_size: int = 32
    only: tuple[str, ...] | None = None

    def __call__(self, chosen: Setting) -> dict[str, Any]:
        """Predictions of the test images (and validation images, if any), minutes, and a list a unit."""
        keep_freed_memory()
        prepared, minutes, reports = self.rescued(chosen)
        network = convert(prepared, chosen["kind"])
        found = {split: predictions_of(evaluate(network, self.images(split))) for split in self._splits()}
        units = [
            [each.unit, each.error_before, each.error_after, each.kept, each.seconds] for each in reports
        ]
        return {**found, "minutes": minutes, "units": units}

    def _splits(self) -> list[str]:
        return ["test", *(["validation"] if self.images_validation else [])]

    def images(self, split: str) -> Images:
        """The images of a split that this job classifies, or learns from."""
        return split_images(split, self.source, getattr(self, f"images_{split}"), 0)

    def evaluation(self, result: Setting, split: str = "test") -> Evaluation:
        """The Evaluation behind a result."""
        return Evaluation.of(classes(result[split]), self.images(split).labels.numpy())

    def rescued(self, chosen: Setting) -> tuple[Prepared, float, list[Report]]:
        """The network of a setting, ready for `convert`; the minutes that the method took; its reports."""
        method, learning, reports = METHODS[chosen["rescue"]], 0.0, []
        prepared, rounding = self.prepared(chosen), method.rounding
        shown = [x for x, _ in batches(self._calibration(chosen))]
        began = time.perf_counter()
        if method.recipe is not None:
            length = {"iterations": chosen["iterations"], "batch_size": self.batch_size}
            recipe = Recipe(**length, start=rounding, dtype=_dtype(chosen), **method.recipe)
            store = Store(cache_folder() / "rescue" / self.digest(chosen))
            found = reconstruct(prepared, shown, recipe, chosen["kind"], chosen["draw"], store, self.only)
            prepared, learning, reports = found.prepared, found.minutes, found.reports
            began, rounding = time.perf_counter(), "nearest"  # what was learned lies on its grid
        if method.bias:
            prepared = correct_bias(prepared, shown, chosen["kind"], rounding)
        elif rounding != "nearest":
            prepared = round_weights(prepared, rounding, chosen["kind"])
        own = (time.perf_counter() - began) / 60 if method.bias or rounding != "nearest" else 0.0
        return prepared, learning + own, reports

    def prepared(self, chosen: Setting) -> Prepared:
        """Observers in place and calibrated, before anything is learned."""
        equalized = METHODS[chosen["rescue"]].equalize
        graph = _network(self.network, chosen["spread"], equalized)
        prepared = prepare(graph, self.qconfig(chosen, graph))
        ptq.settle_weights(prepared, self.network, chosen["spread"], equalized, self.ratios)
        drawn = (chosen["observer"], self.source, self.images_calibration, chosen["draw"])
        known = (self.network, chosen["spread"], equalized)
        ptq.take_ranges(prepared, ptq.calibrated(_network, known, *drawn))
        return prepared

    def qconfig(self, chosen: Setting, graph: fx.GraphModule) -> QConfig:
        """The QConfig of a setting."""
        if chosen["allocation"] != "uniform":
            widths = json.loads(chosen["allocation"])
        else:
            weight = {name: int(chosen["bits_weight"]) for name in counted(self.network).weights}
            weight[list(weight)[-1]] = chosen["bits_fc"]
            widths = {"weight": weight, "activation": chosen["bits_activation"]}
        method = METHODS[chosen["rescue"]]
        more = (chosen["ends"], self.ratios, chosen["observer"], method.narrow, method.weights)
        return low_bit_qconfig(graph.graph, widths["weight"], widths["activation"], *more)

    def _calibration(self, chosen: Setting) -> Images:
        return split_images("calibration", self.source, self.images_calibration, chosen["draw"])

    def digest(self, chosen: Setting) -> str:
        """What a setting's learned units are known by: network, images, recipe and code."""
        weights = hashlib.sha256()
        for tensor in _network(self.network, 1.0, False).state_dict().values():
            weights.update(tensor.numpy().tobytes())
        said = {
            "setting": {name: chosen[name] for name in RESCUE}, "recipe": str(METHODS[chosen["rescue"]]),
            "images": self._calibration(chosen).md5, "weights": weights.hexdigest(), "ratios": self.ratios,
            "batch_size": self.batch_size, "only": self.only, "dtype": str(_dtype(chosen)),
            "code": code_digest(("quantization", "study/ptq.py", "study/rescue.py")),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:20]


def _dtype(chosen: Setting) -> torch.dtype:
    """In what the convolutions of a learning unit run: a short run is the same on every machine."""
    return torch.bfloat16 if chosen["iterations"] >= LONG and bfloat16_is_fast() else torch.float32


@lru_cache(maxsize=4)
def _network(name: str, spread: float, equalized: bool) -> fx.GraphModule:
    graph = ptq.trained_graph(name)
    if spread != 1:
        graph = unbalance(graph, spread)
    return equalize(graph) if equalized else graph


@lru_cache(maxsize=2)
def counted(network: str) -> Counts:
    """Weights, activations and multiplications of a network of ours. Introduced in notebook 10."""
    return counts(ptq.trained_graph(network), torch.zeros(1, 3, 32, 32))


def columns_of(result: Setting) -> dict[str, Any]:
    """The columns of a result for a table; an allocation is only called that.

    Introduced in notebook 10.
    """
    columns = {name: result[name] for name in RESCUE if name != "rescue"}
    return {**columns, "allocation": "uniform" if columns["allocation"] == "uniform" else "allocated"}

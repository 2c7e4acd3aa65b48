"""The ladder of rescue methods: bits and a method, from plain data to predictions and minutes."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import fx

from quantlib.quantization.equalization import equalize, unbalance
from quantlib.quantization.low_bits import Counts, counts, low_bit_qconfig
from quantlib.quantization.qconfig import QConfig
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
from quantlib.study.rescue_methods import METHODS, RESCUE
from quantlib.study.sweep import Setting
from quantlib.subject.allocator import keep_freed_memory
from quantlib.subject.benchmark import bfloat16_is_fast
from quantlib.subject.data import Images, batches
from quantlib.subject.evaluation import Evaluation, classes, evaluate, predictions_of
from quantlib.subject.layout import cache_folder

LEARNING = ("quantization", "study/ptq.py", "study/rescue.py", "study/rescue_methods.py")
"""The code that decides what units learn."""


@dataclass(frozen=True)
class Rescue:
    """Evaluates settings of one trained network; called with one, it gives predictions, minutes and reports.

    Small, and loads what it needs when first used, so that it can be sent to a worker. Finished units are
    kept in the user's cache until `forget`, and found there by whoever asks for the same. `only`: names of
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
        trained = prepared
        shown = [x for x, _ in batches(self._calibration(chosen))]
        began = time.perf_counter()
        if method.recipe is not None:
            length = {"iterations": chosen["iterations"], "batch_size": self.batch_size}
            recipe = Recipe(**length, start=rounding, dtype=_dtype(chosen), **method.recipe)
            store = Store(self.folder / self.digest(chosen))
            found = reconstruct(prepared, shown, recipe, chosen["kind"], chosen["draw"], store, self.only)
            prepared, learning, reports = found.prepared, found.minutes, found.reports
            began, rounding = time.perf_counter(), "nearest"  # what was learned lies on its grid
        if method.bias:
            prepared = correct_bias(prepared, shown, chosen["kind"], rounding, trained)
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

    @property
    def folder(self) -> Path:
        """Where learned units are kept: a folder for this network, these images and this code."""
        weights = hashlib.sha256()
        for tensor in _network(self.network, 1.0, False).state_dict().values():
            weights.update(tensor.numpy().tobytes())
        said = [
            self.source, self.images_calibration, self.ratios, self.batch_size, self.only,
            weights.hexdigest(), code_digest(LEARNING),
        ]  # fmt: skip
        return cache_folder() / "rescue" / _digest(said)

    def digest(self, chosen: Setting) -> str:
        """What a setting's learned units are known by in the folder: columns, images, recipe."""
        columns, recipe = {name: chosen[name] for name in RESCUE}, METHODS[chosen["rescue"]]
        return _digest([columns, str(recipe), self._calibration(chosen).md5, str(_dtype(chosen))])

    def forget(self) -> None:
        """Remove what is kept of all settings: their results are recorded. A full study keeps gigabytes."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _digest(said: list[Any]) -> str:
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

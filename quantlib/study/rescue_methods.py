"""What is tried on a network with few bits: the methods, a setting's columns, and the goals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantlib.quantization.low_bits import ACTIVATION_OBSERVER
from quantlib.quantization.qconfig import check_name
from quantlib.study.sweep import Setting


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


def columns_of(result: Setting) -> dict[str, Any]:
    """The columns of a result for a table; an allocation is only called that.

    Introduced in notebook 10.
    """
    columns = {name: result[name] for name in RESCUE if name != "rescue"}
    return {**columns, "allocation": "uniform" if columns["allocation"] == "uniform" else "allocated"}

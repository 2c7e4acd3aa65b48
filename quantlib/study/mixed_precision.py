"""Mixed precision without labels: what each layer's bits cost, and how a budget is spent on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from quantlib.quantization.affine import QParams, fake_quantize
from quantlib.quantization.allocation import Table, allocate
from quantlib.quantization.graph import kind
from quantlib.quantization.low_bits import activation_scheme, weight_scheme
from quantlib.quantization.metrics import rank_correlation
from quantlib.quantization.qconfig import QConfig
from quantlib.quantization.sensitivity import Sensitivity, layer_sensitivity
from quantlib.quantization.sites import site_name, source
from quantlib.quantization.workflow import Prepared, prepare
from quantlib.subject.data import Images, batches

Costs = dict[str, dict[int, Sensitivity]]
"""By layer and bits, what it costs that this layer alone has so few."""


def label_free_costs(
    graph: fx.GraphModule, images: Images, widths: Sequence[int], part: str, seen: Prepared | None = None
) -> Costs:
    """What each layer's bits cost: the divergence of the answers from the float network's own.

        cost = mean over images of  sum over classes  p log(p / q),  p in float, q with one layer rounded

    It is the `loss_rise` of [layer][bits], in nats, for weights or for activations (`part`, whose ranges come
    from the calibrated `seen`). An activation is rounded as "mixed" rounds it: for the layers that read it,
    not for a shortcut beside them; those that no layer reads are left out. Needs no label. Introduced in
    notebook 10.
    """
    with torch.no_grad():
        answers = torch.cat([graph(x).softmax(1) for x, _ in batches(images)])
    readers: dict[str, list[str]] = {}
    for node in graph.graph.nodes:
        if kind(node) not in ("conv", "linear"):
            continue
        readers.setdefault(site_name(source(node.args[0])), []).append(str(node.target))  # type: ignore[arg-type]
    own = replace(images, labels=answers)
    found: Costs = {}
    for bits in widths:
        scheme = weight_scheme(bits, ratios=10) if part == "weight" else activation_scheme(bits)
        prepared = prepare(graph, QConfig(scheme, None) if part == "weight" else QConfig(None, scheme))
        prepared.activations = {name: each for name, each in prepared.activations.items() if name in readers}
        for name in prepared.activations:
            assert seen is not None
            prepared.set_observer(name, seen.activations[name].with_bits(bits))
        for row in layer_sensitivity(prepared, own, part).layers:
            if part == "activation":
                where_read = _rounded_where_read(graph, readers[row.layer], prepared.qparams(row.layer), own)
                row = replace(row, loss_rise=where_read)
            found.setdefault(row.layer, {})[bits] = row
    return found


def _rounded_where_read(
    graph: fx.GraphModule, readers: Sequence[str], grid: QParams, images: Images
) -> float:
    """The divergence when only these layers read the rounded tensor; the labels are the float answers."""

    def rounded(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return fake_quantize(args[0], grid), *args[1:]

    handles = [graph.get_submodule(name).register_forward_pre_hook(rounded) for name in readers]
    try:
        with torch.no_grad():
            logits = torch.cat([graph(x) for x, _ in batches(images)]).double()
    finally:
        for handle in handles:
            handle.remove()
    return float(F.kl_div(logits.log_softmax(1), images.labels.double(), reduction="batchmean"))


def divergences(found: Costs) -> dict[str, dict[int, float]]:
    """The costs as numbers, 0 or more, for `spend`. Introduced in notebook 10."""
    return {
        name: {bits: max(row.loss_rise, 0.0) for bits, row in rows.items()} for name, rows in found.items()
    }


def ranks(found: Costs, bits: int) -> dict[str, float]:
    """How well a cheap measure ranks the layers: "sqnr" of the rounded tensor and "output_sqnr", -1 to 1.

    Spearman's correlation of each (its sign turned: a high SQNR is harmless) with the divergence at `bits`.
    Introduced in notebook 10.
    """
    rows = [choices[bits] for choices in found.values()]
    harm = [row.loss_rise for row in rows]
    measures = {"sqnr": [-row.sqnr_db for row in rows], "output_sqnr": [-row.output_sqnr_db for row in rows]}
    return {name: rank_correlation(values, harm) for name, values in measures.items()}


def spend(costs: Table, sizes: Mapping[str, int], average: float) -> dict[str, int]:
    """The allocation of least cost whose average width, weighted by `sizes`, is no more than `average`.

    Introduced in notebook 10.
    """
    table = {name: {bits: sizes[name] * bits for bits in choices} for name, choices in costs.items()}
    return allocate(costs, table, int(average * sum(sizes[name] for name in costs)))


def allocation(weight: Mapping[str, int], activation: Mapping[str, int]) -> str:
    """Two allocations as the value of a setting's column. Introduced in notebook 10."""
    return json.dumps({"weight": dict(weight), "activation": dict(activation)}, sort_keys=True)

"""One engine for AdaRound, BRECQ, QDrop and learned ranges: unit by unit, the twin learns its output."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantlib.progress import progress
from quantlib.quantization.qconfig import check_name
from quantlib.quantization.reconstruction.network import LowBitNetwork
from quantlib.quantization.reconstruction.one_pass import compiling, flat
from quantlib.quantization.reconstruction.passes import all_of, distance, error, loaded, through
from quantlib.quantization.reconstruction.ranges import dropped, mixed
from quantlib.quantization.reconstruction.recipe import Recipe, Reconstruction, Report
from quantlib.quantization.reconstruction.rounding import SoftRounding
from quantlib.quantization.reconstruction.store import Store
from quantlib.quantization.reconstruction.units import Unit, pieces, split
from quantlib.quantization.sites import site_name
from quantlib.quantization.workflow import Prepared

LONG = 50
"""Iterations of a unit that pay the compiler."""


@torch.enable_grad()  # its caller may not want any
def reconstruct(
    prepared: Prepared,
    batches: Iterable[Any],
    recipe: Recipe | None = None,
    kind: str = "mixed",
    seed: int = 0,
    store: Store | None = None,
    only: Sequence[str] | None = None,
) -> Reconstruction:
    """Learn the rounding of a calibrated network, unit by unit, from images without labels.

        minimize over rounding (and ranges)   mean over images, pixels of  sum over channels (low - float)^2

    Each unit reads what the low-bit units before it make and is asked for the float network's output. What
    enters and leaves a unit is kept in half precision. A unit never ends worse on `batches` than it
    began (`Recipe.start`): where it would, it keeps that. `kind`: as in `convert`, it decides which tensors
    are rounded. `store`: finished units are kept there, and found there again. `only`: names of the blocks to
    learn, as `blocks` gives them.
    Raises NotCalibratedError before calibrate, ConfigError for an unknown kind or unit or without images,
    NonFiniteError when a unit's output is not finite. Sources: Nagel et al. 2020 (AdaRound), Li et al. 2021
    (BRECQ), Wei et al. 2022 (QDrop), Esser et al. 2020 (LSQ). Introduced in notebook 10.
    """
    recipe = recipe or Recipe()
    network = LowBitNetwork(prepared, kind, recipe.start)
    exact = low = all_of(batches, "reconstruct")
    blocks = pieces(prepared.graph, recipe.granularity)
    only = [only] if isinstance(only, str) else only
    for name in only or ():
        check_name(name, [block.name for block in blocks], "unit")
    reports: list[Report] = []
    for place, block in enumerate(progress(blocks, "reconstruct", len(blocks), "unit")):
        wanted = through(network, block, exact, low_bit=False)
        if only is None or block.name in only:
            rng = np.random.default_rng([seed, place])
            reports += _block(network, block, (low, exact, wanted), recipe, rng, store)
        exact = wanted
        if place + 1 < len(blocks):
            low = through(network, block, low)
    return Reconstruction(network.finish(), reports)


Tensors = tuple[Tensor, Tensor, Tensor]
"""What enters a unit in the twin, what enters it in the float network, and what the float network makes."""


def _block(
    network: LowBitNetwork, block: Unit, tensors: Tensors, recipe: Recipe, rng: np.random.Generator,
    store: Store | None,
) -> list[Report]:  # fmt: skip
    """Learn a block, whole or layer by layer, or take what the store has of it."""
    found = None if store is None else store.get(block.name)
    if found is not None:
        network.load_state(block, found[0])
        return [Report(**report) for report in found[1]["units"]]
    low, exact, wanted = tensors
    reports = []
    for unit in split(block, recipe.granularity):
        own = tensors
        if unit is not block:
            own = (
                through(network, block, low, until=unit.source),
                through(network, block, exact, low_bit=False, until=unit.source),
                through(network, block, exact, low_bit=False, until=unit.result),
            )
        reports.append(_learn(network, unit, own, recipe, rng))
    if store is not None:
        store.put(block.name, network.state(block), {"units": [asdict(report) for report in reports]})
    return reports


def _learn(
    network: LowBitNetwork, unit: Unit, tensors: Tensors, recipe: Recipe, rng: np.random.Generator
) -> Report:
    """Train one unit; back to where it was if that did not help."""
    began, low, wanted = time.perf_counter(), tensors[0], tensors[2]
    before, start = error(network, unit, low, wanted), network.state(unit)
    with compiling(recipe.iterations >= LONG):
        _train(network, unit, tensors, recipe, rng)
    after = error(network, unit, low, wanted)
    kept = after < before
    if not kept:
        network.load_state(unit, start)
    return Report(unit.name, before, min(before, after), kept, time.perf_counter() - began)


def _train(
    network: LowBitNetwork, unit: Unit, tensors: Tensors, recipe: Recipe, rng: np.random.Generator
) -> None:
    """The iterations of one unit; the network holds what was learned afterwards."""
    low, exact, wanted = tensors
    names = [site_name(node) for node in unit.layers if site_name(node) in network.weights]
    learning = _prepare(network, unit, names, recipe, rng)
    if learning is None:
        return _decide(network, unit, names)
    optimizer, schedule = learning
    for step in range(recipe.iterations):
        drawn = rng.choice(len(low), min(recipe.batch_size, len(low)), replace=False)
        chosen = torch.from_numpy(np.sort(drawn))
        x = loaded(low, chosen)
        if recipe.drop:
            other = flat(loaded(exact, chosen))
            x = mixed(flat(x), other, dropped(x, recipe.drop, rng)).as_strided(x.shape, x.stride())
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.dtype == torch.bfloat16):
            y = network.run(unit, x)
        loss = distance(y, loaded(wanted, chosen))
        beta = recipe.exponent(step)
        if beta is not None and recipe.rounding:
            for name in names:
                loss = loss + recipe.strength * network.soft[name].penalty(beta)
        optimizer.zero_grad()
        # What is left in float32 gets no gradient: it is the caller's own.
        loss.backward(inputs=[value for group in optimizer.param_groups for value in group["params"]])
        schedule(step)
        optimizer.step()
    _decide(network, unit, names)


def _prepare(
    network: LowBitNetwork, unit: Unit, names: list[str], recipe: Recipe, rng: np.random.Generator
) -> tuple[torch.optim.Optimizer, Callable[[int], None]] | None:
    """Make the unit trainable; the optimizer and what sets its rates, or None where nothing can learn."""
    fast: list[Tensor] = []
    slow: list[Tensor] = []
    for name in names:
        if recipe.rounding:
            weight = network.graph.get_submodule(name).weight
            network.soft[name] = soft = SoftRounding(weight, network.grids[name], recipe.scales)  # type: ignore[arg-type]
            fast.append(soft.logits)
            slow += [soft.log_scale] if recipe.scales else []
        bias = network.biases[name]
        if recipe.biases and bias is not None:
            slow.append(bias.requires_grad_())
    for name, learned in network.ranges_of(unit).items():
        learned.train()
        learned.drop, learned.rng = recipe.drop, rng
        learns = recipe.ranges and name not in network.settled
        learned.log_scale.requires_grad_(learns)
        slow += [learned.log_scale] if learns else []
    rate, rate_slow = recipe.rates()
    groups = [{"params": fast, "lr": rate}, {"params": slow, "lr": rate_slow}]
    groups = [group for group in groups if group["params"]]
    if not groups:  # all of it was left in float32
        return None
    optimizer = torch.optim.Adam(groups, fused=True)

    def schedule(step: int) -> None:
        if slow:
            fall = (1 + math.cos(math.pi * step / recipe.iterations)) / 2
            optimizer.param_groups[-1]["lr"] = rate_slow * fall

    return optimizer, schedule


@torch.no_grad()
def _decide(network: LowBitNetwork, unit: Unit, names: list[str]) -> None:
    """Every weight takes the side that it leans to; nothing is trained any more."""
    for name in names:
        if name in network.soft:
            network.weights[name], network.grids[name] = network.soft.pop(name).decided()
        bias = network.biases[name]
        network.biases[name] = None if bias is None else bias.detach()
    network.settled.update(network.ranges_of(unit))
    for learned in network.ranges_of(unit).values():
        learned.eval()
        learned.log_scale.requires_grad_(False)

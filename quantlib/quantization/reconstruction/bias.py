"""Bias correction: rounding shifts the mean of a layer's output, and the bias can take the shift back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from quantlib.errors import ConfigError
from quantlib.quantization.reconstruction.network import LowBitNetwork
from quantlib.quantization.reconstruction.passes import CHUNK, all_of, through
from quantlib.quantization.reconstruction.units import Unit, blocks
from quantlib.quantization.sites import site_name
from quantlib.quantization.workflow import Prepared


def correct_bias(
    prepared: Prepared,
    batches: Iterable[Any],
    kind: str = "mixed",
    rounding: str = "nearest",
    reference: Prepared | None = None,
) -> Prepared:
    """A copy whose biases make the mean of every output channel what it is in the float network.

        b' = b + mean(float output) - mean(low-bit output)     over images and pixels, before the ReLU

    Layer after layer, so that each one sees what the corrected ones before it make; needs images, no labels
    and no batch norm (the empirical form). A layer without a bias stays without. `kind`: as in `convert`;
    `rounding`: of the weights, one of WEIGHT_ROUNDINGS. Layers left in float32 keep their bias. `reference`:
    the network as trained, calibrated, where `prepared` holds what `reconstruct` has learned: those weights
    serve clipped activations, and make no float network whose means were worth having. Raises ConfigError
    without images or for another network as the reference, NotCalibratedError before calibrate,
    NonFiniteError when an output is not finite. Source: Nagel et al. 2019, section 4.2 and appendix D.
    Introduced in notebook 10.
    """
    network = LowBitNetwork(prepared, kind, rounding)
    whole = network if reference is None else LowBitNetwork(reference, kind)
    exact = low = all_of(batches, "correct_bias")
    for block, original in _pairs(network, whole):
        for node, same in zip(block.layers, original.layers, strict=True):
            bias = network.biases.get(site_name(node))
            if bias is not None:
                bias += _mean(whole, original, same, exact, False) - _mean(network, block, node, low, True)
        exact, low = through(whole, original, exact, low_bit=False), through(network, block, low)
    return network.finish()


def _pairs(network: LowBitNetwork, whole: LowBitNetwork) -> list[tuple[Unit, Unit]]:
    """The blocks of two networks, each with its like."""
    both = [blocks(each.prepared.graph) for each in (network, whole)]
    names, wanted = ([[site_name(node) for unit in part for node in unit.nodes]] for part in both)
    if names != wanted:
        raise ConfigError("The reference is another network; pass what reconstruct was given.")
    return list(zip(*both, strict=True))


def round_weights(prepared: Prepared, rounding: str = "balanced", kind: str = "mixed") -> Prepared:
    """A copy whose weights are rounded by one of WEIGHT_ROUNDINGS, for `convert`.

    Raises NotCalibratedError before calibrate. Introduced in notebook 10.
    """
    return LowBitNetwork(prepared, kind, rounding).finish()


@torch.no_grad()
def _mean(network: LowBitNetwork, block: Unit, node: fx.Node, x: Tensor, low_bit: bool) -> Tensor:
    """Mean of each output channel of a layer, over all images and pixels."""
    sums, count = torch.zeros(()), 0
    for part in x.split(CHUNK):
        y = network.before_relu(block, part.float(), node, low_bit).transpose(0, 1).flatten(1)
        sums, count = sums + y.double().sum(1), count + y.shape[1]
    return (sums / count).float()

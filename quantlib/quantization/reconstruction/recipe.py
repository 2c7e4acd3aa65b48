"""What is learned and for how long, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantlib.errors import ConfigError
from quantlib.quantization.qconfig import check_name
from quantlib.quantization.reconstruction.balance import WEIGHT_ROUNDINGS
from quantlib.quantization.reconstruction.units import GRANULARITIES
from quantlib.quantization.workflow import Prepared


@dataclass(frozen=True)
class Recipe:
    """What is learned, on what at a time, and for how long.

    granularity: "layer" (AdaRound), "block" (BRECQ) or "network"; start: one of WEIGHT_ROUNDINGS, gives the
    scales to begin with and what learning must beat; rounding: learn which way each weight goes; drop: share
    of activations left unrounded while training (QDrop: 0.5); ranges: learn the scales of the activations
    (LSQ); scales: learn those of the weights; biases: learn the biases as well.
    iterations a unit, of `batch_size` images; the rates are Adam's at the start, those of scales and biases
    fall with a cosine. strength, warm_up, beta: the penalty on undecided weights, absent during the first
    share `warm_up`, then with an exponent that falls from beta[0] to beta[1]; AIMET's and BRECQ's constants.
    Their 20,000 iterations at rate 0.001 become 1,000 at 0.01 here: a rate of None goes with the number of
    iterations, so that a short run gets about as far (see `rates`). dtype: torch.bfloat16 lets the twin's
    convolutions run in it while they learn; what is compared and kept is computed in float32. Introduced in
    notebook 10.
    """

    granularity: str = "block"
    start: str = "nearest"
    rounding: bool = True
    drop: float = 0.0
    ranges: bool = False
    scales: bool = False
    biases: bool = False
    iterations: int = 1000
    batch_size: int = 32
    rate: float | None = None
    rate_scales: float | None = None
    strength: float = 0.01
    warm_up: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_name(self.granularity, GRANULARITIES, "granularity")
        check_name(self.start, WEIGHT_ROUNDINGS, "rounding")
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise ConfigError(f"A recipe learns in torch.float32 or torch.bfloat16, not in {self.dtype}.")
        if not 0 <= self.drop < 1 or not 0 <= self.warm_up < 1:
            raise ConfigError("drop and warm_up are shares, 0 or more and below 1.")
        if self.iterations < 1 or self.batch_size < 1:
            raise ConfigError("A recipe needs at least one iteration of at least one image.")
        if not (self.rounding or self.ranges or self.biases):
            raise ConfigError("This recipe learns nothing: set rounding, ranges or biases.")
        if self.scales and not self.rounding:
            raise ConfigError("The scales of weights are learned with their rounding: set rounding=True.")

    def rates(self) -> tuple[float, float]:
        """Adam's rates for the rounding, and for scales and biases: 10 and 1 over the iterations if None."""
        rate = min(0.05, 10 / self.iterations) if self.rate is None else self.rate
        slow = min(0.01, 1 / self.iterations) if self.rate_scales is None else self.rate_scales
        return rate, slow

    def exponent(self, step: int) -> float | None:
        """The penalty's exponent at a step; None while it warms up."""
        begin = self.warm_up * self.iterations
        if step < begin:
            return None
        start, end = self.beta
        return end + (start - end) * max(0.0, 1 - (step - begin) / (self.iterations - begin))


@dataclass(frozen=True)
class Report:
    """What reconstruction did to one unit: its error on the images before and after, relative to its output.

    error: sum |output - float output|^2 / sum |float output|^2, with the rounding and the ranges it
    started from, and as learned; kept: whether what was learned is used, False where it was no better.
    """

    unit: str
    error_before: float
    error_after: float
    kept: bool
    seconds: float


@dataclass(frozen=True)
class Reconstruction:
    """The network, ready for `convert`, and a Report for each unit in order."""

    prepared: Prepared
    reports: list[Report]

    @property
    def minutes(self) -> float:
        """What learning took; units that were found in the store count with the time they once took."""
        return sum(report.seconds for report in self.reports) / 60

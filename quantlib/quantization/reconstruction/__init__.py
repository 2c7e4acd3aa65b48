"""Reconstruction: low-bit units learn the output of their float twins, from a few images without labels."""

from quantlib.quantization.reconstruction.balance import WEIGHT_ROUNDINGS, balanced, flip
from quantlib.quantization.reconstruction.bias import correct_bias, round_weights
from quantlib.quantization.reconstruction.engine import LONG, reconstruct
from quantlib.quantization.reconstruction.network import LowBitNetwork
from quantlib.quantization.reconstruction.ranges import LearnedRange
from quantlib.quantization.reconstruction.recipe import Recipe, Reconstruction, Report
from quantlib.quantization.reconstruction.rounding import SoftRounding, rectified_sigmoid
from quantlib.quantization.reconstruction.store import Store
from quantlib.quantization.reconstruction.units import Unit, blocks

__all__ = [
    "LONG", "WEIGHT_ROUNDINGS", "LearnedRange", "LowBitNetwork", "Recipe", "Reconstruction", "Report",
    "SoftRounding", "Store", "Unit", "balanced", "blocks", "correct_bias", "flip", "reconstruct",
    "rectified_sigmoid", "round_weights",
]  # fmt: skip

"""One colour, marker and name for each method, the same in every figure of the course."""

from dataclasses import dataclass

from quantlib.errors import StudyError


@dataclass(frozen=True)
class Look:
    """A method's colour, marker and name in every figure of the course."""

    colour: str
    marker: str
    label: str


GREY, BLACK, BLUE, SKY, GREEN = "#7f7f7f", "#000000", "#0072B2", "#56B4E9", "#009E73"
"""Okabe and Ito's colours, which people with any colour vision tell apart."""
ORANGE, VERMILLION, PURPLE, WINE = "#E69F00", "#D55E00", "#CC79A7", "#882255"
"""The rest of them, with wine for their yellow, which is too light on white."""

# Methods of one colour never meet in one figure; markers tell them apart besides.
METHODS: dict[str, Look] = {
    "fp32": Look(GREY, "o", "FP32"),
    "fp32_folded": Look(GREY, "h", "FP32 folded"),
    "optimum": Look(BLACK, "*", "optimum"),
    "minmax": Look(VERMILLION, "s", "min-max"),
    "moving_average": Look(ORANGE, "D", "moving average"),
    "percentile": Look(PURPLE, "^", "percentile"),
    "histogram": Look(SKY, "v", "histogram"),
    "mse": Look(BLUE, "o", "mean squared error"),
    "entropy": Look(GREEN, "P", "entropy"),
    "aciq": Look(WINE, "X", "ACIQ"),
    "per_tensor": Look(VERMILLION, "s", "per tensor"),
    "per_channel": Look(BLUE, "o", "per channel"),
    "weights": Look(BLUE, "o", "weights"),
    "activations": Look(ORANGE, "D", "activations"),
    "both": Look(GREEN, "P", "both"),
    "ends_at_8": Look(GREEN, "P", "first, last at 8"),
    "adds_in_float": Look(PURPLE, "^", "adds in FP32"),
    "adds_in_float_ends_at_8": Look(BLACK, "d", "adds FP32, ends 8"),
    "symmetric": Look(VERMILLION, "s", "symmetric"),
    "affine": Look(BLUE, "o", "affine"),
    "unsigned": Look(GREEN, "P", "unsigned"),
    "narrow_range": Look(BLUE, "o", "narrow range"),
    "full_range": Look(VERMILLION, "s", "full range"),
    "after_relu": Look(BLUE, "o", "after ReLU"),
    "before_relu": Look(VERMILLION, "s", "before ReLU"),
    "before_and_after_relu": Look(WINE, "X", "before and after ReLU"),
    "simulated": Look(SKY, "v", "simulated"),
    "mixed": Look(BLUE, "o", "mixed"),
    "integer": Look(GREEN, "P", "integer"),
    "gemmlowp": Look(VERMILLION, "s", "gemmlowp"),
    "single_rounding": Look(SKY, "v", "single rounding"),
    "float_bias": Look(ORANGE, "D", "float bias"),
    "zero_point_inside": Look(PURPLE, "^", "zero point inside"),
    "torch_ao": Look(ORANGE, "D", "torch.ao"),
    "torch_ao_onednn": Look(VERMILLION, "s", "torch.ao oneDNN"),
    "fp32_compiled": Look(BLACK, "d", "FP32 compiled"),
    "onnxruntime": Look(PURPLE, "^", "ONNX Runtime"),
    # Notebook 10, low-bit rescue:
    "nearest": Look(GREY, "o", "nearest rounding"),
    "nearest_narrow": Look(GREY, "s", "nearest, narrow range"),
    "nearest_minmax": Look(GREY, "D", "nearest, min-max, narrow"),
    "equalization": Look(ORANGE, "D", "equalization"),
    "bias_correction": Look(PURPLE, "^", "bias correction"),
    "balanced": Look(PURPLE, "s", "balanced rounding"),
    "balanced_narrow": Look(PURPLE, "D", "balanced, narrow range"),
    "balanced_bias": Look(PURPLE, "*", "balanced rounding, then bias correction"),
    "learned_ranges": Look(SKY, "v", "learned ranges (LSQ)"),
    "adaround": Look(VERMILLION, "s", "AdaRound (layers)"),
    "brecq": Look(BLUE, "o", "BRECQ (blocks)"),
    "brecq_ranges": Look(BLUE, "P", "BRECQ + ranges"),
    "qdrop": Look(GREEN, "o", "QDrop + ranges"),
    "brecq_all": Look(BLUE, "*", "BRECQ + ranges, scales, biases"),
    "qdrop_all": Look(GREEN, "*", "QDrop + ranges, scales, biases"),
    "qdrop_all_narrow": Look(GREEN, "D", "QDrop + all, narrow range"),
    "equalized_all": Look(WINE, "X", "equalization, then BRECQ + all"),
    "all_corrected": Look(BLACK, "d", "BRECQ + all, then bias correction"),
    "balanced_all": Look(WINE, "*", "balanced rounding, then BRECQ + all"),
    "balanced_all_narrow": Look(WINE, "D", "the same, narrow range"),

    # Notebooks 11 and 12, pruning and tickets:
    "global": Look(BLUE, "o", "global"),
    "layer": Look(SKY, "v", "per layer"),
    "random": Look(VERMILLION, "s", "random"),
    "recalibrated": Look(PURPLE, "^", "new BN statistics"),
    "lamp": Look(WINE, "X", "LAMP"),
    "lamp_recalibrated": Look(WINE, "v", "LAMP, new statistics"),
    "blocks": Look(ORANGE, "*", "LAMP, blocks learned"),
    "blocks_global": Look(BLUE, "*", "global, blocks learned"),
    "retrained": Look(GREEN, "P", "retrained"),
    "retrained_long": Look(GREEN, "D", "LAMP, long retraining"),
    "one_shot": Look(ORANGE, "D", "one shot"),
    "iterative": Look(PURPLE, "^", "iterative"),
    "gradual": Look(GREEN, "P", "gradual"),
    "masked": Look(VERMILLION, "s", "zeros, same shape"),
    "thinned": Look(BLUE, "o", "thinned"),
    "dense": Look(GREY, "o", "dense"),
    "ticket": Look(BLUE, "o", "ticket"),
    "rewound": Look(PURPLE, "^", "rewound ticket"),
    "reinitialized": Look(ORANGE, "D", "new start"),
    "random_mask": Look(VERMILLION, "s", "random mask"),

    # Notebooks 13 and 14, sharing and coding:
    "linear": Look(BLUE, "o", "linear start"),
    "density": Look(ORANGE, "D", "density start"),
    "plus_plus": Look(GREEN, "P", "k-means++"),
    "grid_per_tensor": Look(VERMILLION, "s", "grid, a layer"),
    "grid_per_channel": Look(PURPLE, "^", "grid, a channel"),
    "int8": Look(BLUE, "o", "int8"),
    "look_up": Look(VERMILLION, "s", "look up, multiply"),
    "look_up_sums": Look(WINE, "X", "sum, multiply"),
    "paper": Look(VERMILLION, "s", "pruned, 16 values"),
    "price": Look(BLUE, "o", "priced bits"),
    "price_pruned": Look(ORANGE, "D", "retrained, priced"),
    "tuned_shared": Look(GREEN, "P", "priced, tuned"),
    "stored": Look(WINE, "X", "only coded"),
    "huffman": Look(BLUE, "o", "Huffman"),
    "ans": Look(ORANGE, "D", "ANS (constriction)"),
    "bound": Look(BLACK, "*", "entropy"),

    # Notebooks 15 and 16, distillation and SqueezeNet:
    "plain": Look(VERMILLION, "s", "plain 3x3"),
    "with_one_by_one": Look(ORANGE, "D", "with 1x1"),
    "with_squeeze": Look(SKY, "v", "with 1x1 and squeeze"),
    "squeezenet": Look(BLUE, "o", "SqueezeNet"),
    "squeezenet_short": Look(BLUE, "o", "SqueezeNet, short schedule"),
    "without_one_by_one": Look(PURPLE, "^", "SqueezeNet without 1x1"),
    "without_squeeze": Look(GREEN, "P", "SqueezeNet without squeeze"),
    "squeezenet_integer": Look(GREEN, "P", "SqueezeNet, integer"),
    "squeezenet_deep": Look(WINE, "X", "SqueezeNet, compressed"),
    "teacher": Look(BLACK, "*", "teacher"),
    "alone": Look(VERMILLION, "s", "alone"),
    "distilled": Look(BLUE, "o", "distilled, T = 4"),
    "same crops": Look(WINE, "*", "T = 4, same crops"),
    "temperature 1": Look(SKY, "v", "T = 1"),
    "temperature 2": Look(GREEN, "P", "T = 2"),
    "temperature 8": Look(PURPLE, "^", "T = 8"),
    "weight 0.5": Look(ORANGE, "D", "T = 4, weight 0.5"),
    "rounded": Look(GREY, "h", "rounded, no training"),
    "alone from scratch": Look(ORANGE, "D", "alone, from scratch"),
    "scheme A": Look(PURPLE, "^", "scheme A"),
    "scheme B": Look(SKY, "v", "scheme B"),
    "scheme C": Look(BLUE, "o", "scheme C"),
    "scheme C, temperature 5": Look(WINE, "X", "scheme C, T = 5"),

    # Notebook 17, low rank:
    "outputs": Look(ORANGE, "D", "outputs"),
    "channel": Look(BLUE, "o", "channel SVD"),
    "spatial": Look(VERMILLION, "s", "spatial SVD"),
    "tucker2": Look(GREEN, "P", "Tucker-2"),
    "channel_plain": Look(SKY, "v", "channel, weights only"),
    "spatial_plain": Look(ORANGE, "D", "spatial, weights only"),
    "tucker2_plain": Look(PURPLE, "^", "Tucker-2, weights only"),
    "energy": Look(ORANGE, "D", "by energy"),
    "uniform": Look(VERMILLION, "s", "uniform"),
    "budget": Look(BLUE, "o", "one budget"),
    "tuned": Look(GREEN, "P", "one budget, tuned"),
    "lowrank": Look(BLUE, "o", "low rank"),
    "lowrank_integer": Look(WINE, "X", "low rank, integer"),

    # Notebook 18, inference speed:
    "bf16": Look(GREY, "D", "bfloat16"),
    "torch_ao_fbgemm": Look(ORANGE, "P", "torch.ao FBGEMM"),
    "torchao_pt2e": Look(VERMILLION, "X", "torchao PT2E"),
    "onnxruntime_fp32": Look(GREY, "^", "ONNX Runtime FP32"),
    "openvino_fp32": Look(GREY, "v", "OpenVINO FP32"),
    "openvino_bf16": Look(GREY, "X", "OpenVINO bfloat16"),
    "openvino": Look(SKY, "v", "OpenVINO int8 (NNCF)"),
    "integer_openvino": Look(WINE, "*", "integer on OpenVINO"),

}
"""The look of every method."""


def look(method: str) -> Look:
    """The look of a method; StudyError says where to add one that is not there."""
    if method not in METHODS:
        raise StudyError(
            f"No colour is set for the method {method!r}; add it to METHODS in quantlib/study/palette.py."
        )
    return METHODS[method]


def colour(method: str) -> str:
    """The one colour of a method."""
    return look(method).colour

"""Figures of notebook 19: accuracy against size and against time, and how the predictions fared."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from quantlib.study import plots
from quantlib.study.figures.registry import figure
from quantlib.study.palette import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, Look
from quantlib.study.scoreboard import front, wide

FAMILY = {
    "float32": Look(BLACK, "*", "float32"),
    "bits": Look(BLUE, "o", "fewer bits"),
    "architecture": Look(VERMILLION, "s", "other architecture"),
    "both": Look(GREEN, "P", "both"),
    "coded": Look(PURPLE, "^", "coded file"),
    "rival": Look(ORANGE, "D", "other toolkits, int8"),
}
"""The look of a family of entrants."""
NAMES = {
    "fp32": "ResNet-50", "bf16": "bf16", "w8a8": "W8A8", "w4a8": "W4A8", "w4a4_rescued": "W4A4, rescued",
    "lowrank": "low rank", "lowrank_w8a8": "low rank W8A8", "resnet20": "ResNet-20",
    "resnet20_w8a8": "ResNet-20 W8A8", "resnet20_w4a8": "ResNet-20 W4A8",
    "squeezenet": "SqueezeNet", "squeezenet_w8a8": "SqueezeNet W8A8",
    "squeezenet_deep": "SqueezeNet, coded", "deep50": "coded, 50x", "deep80": "coded, 80x",
    "torch_ao": "torch.ao", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO",
}  # fmt: skip
"""What a picture calls each entrant."""


@figure("19_size", "19_board")
def accuracy_by_size(board: pd.DataFrame) -> Figure:
    """Accuracy against megabytes on disk, with the front."""
    lines = wide(board)
    kept = front(lines, "megabytes")
    title = (
        f"{len(kept)} of {len(lines)} networks are worth their size, "
        f"from {lines.at[kept[0], 'megabytes']:.2f} MB on"
    )
    ticks = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
    return _drawn(board, "megabytes", kept, title, "megabytes on disk", ticks, 0.6)


@figure("19_time", "19_board")
def accuracy_by_time(board: pd.DataFrame) -> Figure:
    """Accuracy against speed on single images, with the front."""
    lines = wide(board)
    kept = front(lines, "speedup_b1", cheap="high")
    title = (
        f"{len(kept)} of {len(lines)} are worth their time, "
        f"up to {lines.at[kept[0], 'speedup_b1']:.0f} times as fast"
    )
    ticks = (0.5, 1, 2, 5, 10, 20, 50, 100, 200)
    return _drawn(board, "speedup_b1", kept, title, "times as fast as FP32, one image", ticks, 0.7)


def _drawn(
    board: pd.DataFrame, x: str, kept: list[str], title: str, xlabel: str, ticks: Sequence[float], left: float
) -> Figure:
    """Every network at its column `x`, the front `kept`; `left`: the axis begins at so much of the least."""
    lines = wide(board)
    made, ax = plots.canvas(title, xlabel, "accuracy (%)", figsize=(7.4, 4.2))
    _cloud(ax, board, lines, x, kept)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xlim(left * lines[x].min(), 3.2 * lines[x].max())
    _names(ax, board, lines, x, kept)
    return made


def _cloud(ax: Axes, board: pd.DataFrame, lines: pd.DataFrame, x: str, kept: list[str]) -> None:
    """A dot with its interval for each network, and the front as stairs."""
    accuracy = board[board["metric"] == "accuracy"].set_index("method")
    for point in accuracy.itertuples():
        face, across = FAMILY[str(point.family)], lines.at[point.Index, x]
        ax.plot([across] * 2, [point.low, point.high], color=face.colour, linewidth=1, alpha=0.6)
        ax.plot(across, point.value, color=face.colour, marker=face.marker, markersize=7)
    stairs = lines.loc[kept].sort_values(x)
    ax.step(
        stairs[x], stairs["accuracy"], where="post" if x == "megabytes" else "pre", color=GREY, linewidth=1,
        linestyle="--", zorder=1,
    )  # fmt: skip
    ax.set_xscale("log")
    ax.minorticks_off()
    for family in dict.fromkeys(accuracy["family"]):
        face = FAMILY[family]
        ax.plot([], [], color=face.colour, marker=face.marker, linestyle="none", label=face.label)
    ax.legend(loc="lower right" if x == "megabytes" else "lower left", fontsize=8, frameon=False)


def _names(ax: Axes, board: pd.DataFrame, lines: pd.DataFrame, x: str, kept: list[str]) -> None:
    """Names beside the dots, moved up or down until no two overlap; bold on the front."""
    made = ax.get_figure(root=True)
    assert made is not None
    n = int(board["n"].max())
    plots.caption(made, f"n = {n:,} test images; lines: 95 % intervals; dashed, bold names: the front")
    made.draw_without_rendering()
    scale, family = made.dpi / 72, board.drop_duplicates("method").set_index("method")["family"]
    dots = {
        name: ax.transData.transform((row[x], row["accuracy"])) / scale for name, row in lines.iterrows()
    }
    taken: list[tuple[float, float, float]] = [(across - 5, across + 5, up) for across, up in dots.values()]
    for name in sorted(lines.index, key=lambda name: -lines.at[name, "accuracy"]):
        left, height = dots[name] + (7, 0)
        right = left + 5.4 * len(NAMES[name])
        place = _free(left, right, height, taken)
        taken.append((left, right, place))
        ax.annotate(
            NAMES[name], (lines.at[name, x], lines.at[name, "accuracy"]), xytext=(7, place - height),
            textcoords="offset points", va="center", fontsize=8, color=FAMILY[family[name]].colour,
            fontweight="bold" if name in kept else "normal",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def _free(left: float, right: float, height: float, taken: list[tuple[float, float, float]]) -> float:
    """The height nearest to the one wished where a name from left to right, 9 points high, meets nothing."""
    for step in range(200):
        for place in (height - step, height + step):
            if not any(left < r and right > s and abs(place - h) < 9.5 for s, r, h in taken):
                return place
    return height


@figure("19_predictions", "19_predictions")
def predictions_by_notebook(made: pd.DataFrame) -> Figure:
    """Right and wrong predictions of every notebook."""
    right, total = made["right"].sum(), made["total"].sum()
    drawn, ax = plots.canvas(
        f"{int(right)} of {int(total)} predictions were right: {100 * right / total:.0f} %",
        "notebook", "predictions", figsize=(7.4, 2.8),
    )  # fmt: skip
    places, wrong = np.arange(len(made)), made["total"] - made["right"]
    ax.bar(places, made["right"], color=BLUE, label="within the tolerance")
    ax.bar(places, wrong, bottom=made["right"], color="white", edgecolor=VERMILLION, hatch="///", label="not")
    ax.set_xticks(places, [f"{int(number):02d}" for number in made["notebook"]])
    ax.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    ax.set_ylim(0, 1.3 * made["total"].max())
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="x", visible=False)
    plots.caption(drawn, f"the recorded full runs of {plots.counted(len(made), 'notebook')}")
    return drawn

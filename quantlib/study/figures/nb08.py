"""Figures of notebook 08: what pure integers lose, what conventions change, what it gains in time."""

import pandas as pd
from matplotlib.figure import Figure

from quantlib.study import plots
from quantlib.study.figures.drops import worse_than_fp32
from quantlib.study.figures.registry import figure
from quantlib.study.figures.speed import speed_panels


@figure("08_accuracy", "08_accuracy")
def drop_by_framework(accuracy: pd.DataFrame) -> Figure:
    """Points lost against FP32 on the same images, with the interval of the paired difference."""
    return worse_than_fp32(accuracy)


@figure("08_conventions", "08_conventions")
def predictions_changed(conventions: pd.DataFrame) -> Figure:
    """How many predictions change when one convention of the reference is changed."""
    table = conventions[conventions["metric"] == "changed_predictions"].reset_index(drop=True)
    shares = table.assign(value=100 * table["value"] / table["n"])
    made, ax = plots.canvas(
        f"Another convention changes at most {shares['value'].max():.2f} % of the predictions",
        "predictions changed (%)", figsize=(6.5, 2.4),
    )  # fmt: skip
    plots.bars_with_intervals(ax, shares)
    plots.caption(made, f"against float rounding, int32 bias; n = {int(table['n'].max()):,} test images")
    return made


@figure("08_speed", "08_speed")
def images_per_second(speed: pd.DataFrame) -> Figure:
    """Images a second of every network, at the two batch sizes."""
    ratios = speed[speed["metric"] == "speedup"].set_index(["method", "batch"])["value"]
    largest = int(speed["batch"].max())
    title = (
        f"Without float borders: {ratios['integer', largest]:.1f} times FP32, "
        f"with them {ratios['mixed', largest]:.1f} times"
    )
    return speed_panels(speed, title, "integer")

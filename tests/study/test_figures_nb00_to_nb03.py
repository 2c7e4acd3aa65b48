"""Figures of notebooks 00, 01 and 03 on made-up tables: titles, and labels that stay inside their panel."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from quantlib.study import results
from quantlib.study.figures import nb00, nb01, nb03

HEADLINE = {
    "fp32_accuracy": 94.0,
    "w8a8_drop": 0.1,
    "mixed_speedup_b64": 3.0,
    "int8_drop": -0.2,
    "int8_speedup_b64": 4.5,
}


def headline(*names):
    rows = [
        {"name": name, "value": HEADLINE[name], "low": HEADLINE[name] - 0.1, "high": HEADLINE[name] + 0.1}
        for name in names
    ]
    return pd.DataFrame(rows).assign(n=10_000)


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (tuple(HEADLINE), "Integers alone change accuracy by +0.20 points and run 4.5 times as fast"),
        (tuple(HEADLINE)[:3], "Eight bits cost 0.10 points and run 3.0 times as fast"),
        (("fp32_accuracy",), "What the study has recorded so far"),
    ],
)
def test_the_result_names_what_is_recorded(names, title):
    made = nb00.result(headline(*names))
    plt.close(made)
    assert made.get_suptitle() == title
    labels = [label.get_text() for label in made.axes[0].get_yticklabels()]
    assert ("integers only" in labels) == ("int8_drop" in names)


def test_the_names_of_resolutions_stay_inside_the_panel():
    log = pd.DataFrame({"epoch": range(1, 31)})
    log["resolution"] = [16] * 6 + [24] * 20 + [32] * 4
    log["loss"], log["validation_accuracy"] = 2.5 - log["epoch"] / 20, 40.0 + log["epoch"]
    made = nb01.training(log)
    made.draw_without_rendering()
    panel = made.axes[0].get_window_extent()
    boxes = [text.get_window_extent() for text in made.axes[0].texts]
    plt.close(made)
    assert len(boxes) == 2
    assert all(panel.x0 <= box.x0 and box.x1 <= panel.x1 for box in boxes)


def test_calibration_title_is_the_range_of_all_draws():
    rows = [
        {**results.row("minmax", "drop", drop, n=500, bits_activation=8, images=images), "seed": seed}
        for images, drops in {16: (0.1, 0.3), 64: (0.9, 1.1), 256: (0.2, 0.2)}.items()
        for seed, drop in enumerate(drops)
    ]
    rows += [{**row, "method": "mse", "bits_activation": 4} for row in rows]
    made = nb03.drop_by_images(pd.DataFrame(rows))
    plt.close(made)
    title = made.get_suptitle()
    assert title == "Over sizes and draws, 8 bits: 0.1 to 1.1 points lost; 4 bits: 0.1 to 1.1 points lost"

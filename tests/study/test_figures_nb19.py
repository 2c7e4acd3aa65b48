"""The scoreboard's figures: every entrant has a name, and no two names overlap."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from quantlib.study import plots
from quantlib.study.entrants import ENTRANTS
from quantlib.study.figures import nb19


def board(accuracies):
    """A made-up board: sizes and speeds by chance, accuracies given."""
    random = np.random.default_rng(1)
    rows = []
    for name, accuracy in zip(ENTRANTS, accuracies, strict=True):
        about = {"method": name, "family": ENTRANTS[name][0]}
        rows += [
            {**about, "batch": 0, "metric": "accuracy", "value": accuracy, "low": accuracy - 0.4,
             "high": accuracy + 0.4, "n": 10000},
            {**about, "batch": 0, "metric": "megabytes", "value": random.choice([0.3, 1, 24])},
            {**about, "batch": 1, "metric": "speedup", "value": random.choice([1, 4, 15])},
        ]  # fmt: skip
    return pd.DataFrame(rows)


def test_every_entrant_has_a_name_and_a_face():
    assert set(nb19.NAMES) == set(ENTRANTS)
    assert {family for family, _ in ENTRANTS.values()} == set(nb19.FAMILY)


@pytest.mark.parametrize("drawing", [nb19.accuracy_by_size, nb19.accuracy_by_time])
def test_no_two_names_overlap(drawing):
    random = np.random.default_rng(0)
    with plots.style():
        made = drawing(board(np.r_[random.normal(94.9, 0.1, len(ENTRANTS) - 8), random.normal(92, 0.5, 8)]))
        made.draw_without_rendering()
        boxes = [text.get_window_extent().padded(-2) for text in made.axes[0].texts]
    assert len(boxes) == len(ENTRANTS)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    plt.close(made)


def test_predictions_are_counted_in_the_title():
    table = pd.DataFrame({"notebook": ["02", "03"], "right": [3, 1], "total": [4, 4]})
    with plots.style():
        made = nb19.predictions_by_notebook(table)
    assert made.axes[0].get_title(loc="left") == "4 of 8 predictions were right: 50 %"
    plt.close(made)

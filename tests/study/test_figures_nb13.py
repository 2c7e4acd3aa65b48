"""The figures of notebooks 13 and 14 on made-up tables of full size, and what their titles read from them."""

import pandas as pd

from quantlib.study import results
from quantlib.study.figures import nb13, nb14
from tests.study.titles import title


def dropped(method, value, **columns):
    return results.row(method, "drop", value, value - 0.3, value + 0.3, 5000, **columns)


def test_accuracy_of_shared_values():
    rows = [results.row("fp32", "accuracy", 90.0, n=5000, clusters=0, norms="old")]
    for clusters, loss in ((64, 0.0), (16, 0.4), (4, 3.0)):
        for method in ("linear", "density", "plus_plus"):
            rows += [
                dropped(method, loss + (norms == "old"), clusters=clusters, norms=norms)
                for norms in ("old", "new")
            ]
        rows += [dropped("grid_per_tensor", 5 * loss, clusters=clusters, norms="old")]
        rows += [dropped("grid_per_channel", 2 * loss, clusters=clusters, norms="old")]
    found = title(nb13.drop_over_shared_values(pd.DataFrame(rows)))
    assert (
        found
        == "16 values lose 1.4 points as a codebook a layer (0.4 with new norms),\n"
        "0.8 as a searched grid a channel, 2.0 as one a layer"
    )


def test_times_against_int8():
    rows = [
        results.row(name, "time_against_int8", value, value * 0.9, value * 1.1, 101, positions=positions)
        for positions, times in (
            (1, {"int8": 1, "look_up": 22.4, "look_up_sums": 300}),
            (64, {"int8": 1, "look_up": 4.2}),
        )
        for name, value in times.items()
    ]
    found = title(nb13.time_against_int8(pd.DataFrame(rows)))
    assert found == "The faster look-up takes 22.4 times as long as int8 at one position, 4.2 times at 64"


def test_frontier_names_the_smallest_file_within_half_a_point_on_validation_images():
    rows = []
    for method, losses in (
        ("paper", {5: 0.2, 20: 30.0}),
        ("price", {10: 0.1, 20: 0.4, 80: 9.0}),
        ("tuned_shared", {60: 0.45}),
    ):
        for ratio, loss in losses.items():
            about = {"start": "resnet50", "ratio": float(ratio), "megabytes": 94.08 / ratio}
            rows += [dropped(method, loss, split=split, **about) for split in ("validation", "test")]
    tempting = {"start": "resnet50", "ratio": 90.0, "megabytes": 94.08 / 90}
    rows += [
        dropped("price", loss, split=split, **tempting)
        for split, loss in (("validation", 0.9), ("test", 0.2))
    ]
    said = title(nb14.drop_over_ratio(pd.DataFrame(rows)))
    assert said == "Chosen on validation images: 60 times smaller, +0.45 points lost"
    high = pd.DataFrame(rows).assign(value=5.0)
    assert title(nb14.drop_over_ratio(high)) == "Every file loses more than half a point on validation images"


def test_parts_of_the_file():
    parts = {"symbols": 0.9, "places": 1.0, "norms and biases": 0.05, "tables": 0.03, "codebook": 0.02}
    rows = [results.row("file", "megabytes", value, part=part) for part, value in parts.items()]
    rows += [results.row("plain_norms", "megabytes", 2.4, part="all")]
    assert title(nb14.parts_of_the_file(pd.DataFrame(rows))).startswith(
        "2.00 MB: 50% say where a weight is left, 45%"
    )

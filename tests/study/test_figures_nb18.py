"""The figures of notebook 18 on made-up tables: what they draw, and what their titles read from them."""

import pandas as pd

from quantlib.study import results
from quantlib.study.bench import leads, speeds
from quantlib.study.figures import nb18
from quantlib.subject.benchmark import Timing
from tests.study.titles import title


def test_ingredients_keep_apart_what_bytes_and_what_hoisting_gain():
    rows = [
        results.row(method, metric, value, value - 0.1, value + 0.1, 3, ingredient=ingredient, place=place)
        for ingredient, method, place, metric, value in (
            ("zero point", "subtracted_first", "network", "milliseconds", 60.0),
            ("zero point", "corrected_each_call", "network", "speedup", 2.5),
            ("zero point", "hoisted", "layer", "speedup", 9.0),
            ("zero point", "hoisted", "network", "speedup", 3.0),
            ("layout", "nchw", "network", "milliseconds", 20.0),
            ("layout", "nhwc", "network", "speedup", 1.2),
        )
    ]
    drawn = nb18.ingredients(pd.DataFrame(rows))
    assert title(drawn) == (
        "Multiplying bytes, not differences: a network 2.5 times as fast;\n"
        "with the correction hoisted 3.0 times"
    )
    labels = [label.get_text() for label in drawn.axes[0].get_yticklabels()][::-1]
    assert labels == [
        "zero point, against subtracted first", "corrected each call", "hoisted",
        "layout, against nchw", "nhwc",
    ]  # fmt: skip


def test_the_roofline_gives_the_share_of_the_best_int8_layer():
    top = {"peak_int8": 1000.0, "peak_fp32": 100.0, "bandwidth": 20.0}
    peaks = pd.DataFrame([results.row(name, "gops", value) for name, value in top.items()])
    layers = pd.DataFrame(
        [
            results.row(method, "gops", value, layer=layer, batch=8, operations=1e6, intensity=intensity)
            for method, layer, value, intensity in (
                ("fp32", "a", 90.0, 20.0),
                ("integer", "a", 700.0, 80.0),
                ("integer", "b", 10.0, 2.0),
            )
        ]
    )
    assert title(nb18.roofline(layers, peaks)) == "The best int8 layer reaches 70 % of the measured peak"


def test_the_unfused_graph_is_compared_with_fp32():
    times = {"fp32": 100.0, "qdq, nothing fused": 150.0, "qdq, all": 25.0}
    rows = [
        results.row(name, metric, value / of, 0.9 * value / of, 1.2 * value / of, 3, batch=8)
        for name, value in times.items()
        for metric, of in (("milliseconds", 1), ("times_of_fp32", 100))
    ]
    assert (
        title(nb18.unfused(pd.DataFrame(rows)))
        == "Unfused int8 takes 1.50 times as long as FP32 [1.35, 1.80], fused 0.25"
    )


def test_the_race_is_headed_by_our_lead():
    timings = {
        name: Timing(seconds, seconds, seconds, (seconds,) * 3)
        for name, seconds in {"fp32": 4.0, "openvino": 0.5, "integer_openvino": 0.4, "integer": 0.8}.items()
    }
    table = pd.DataFrame([row for size in (1, 8) for row in speeds(timings, size) + leads(timings, size)])
    drawn = nb18.images_per_second(table)
    assert (
        title(drawn)
        == "Batch 8: our integers run at 1.25 [1.25, 1.25] times the speed of OpenVINO int8 (NNCF)"
    )
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()][0] == "integer on OpenVINO"

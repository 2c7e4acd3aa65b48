"""The figures of notebook 18 on made-up tables: what they draw, and what their titles read from them."""

import matplotlib.pyplot as plt
import pandas as pd

from quantlib.study import results
from quantlib.study.bench import leads, speeds
from quantlib.study.figures import nb18
from quantlib.subject.benchmark import Timing


def title(figure):
    plt.close(figure)
    return figure.get_suptitle() or figure.axes[0].get_title(loc="left") or figure.axes[0].get_title()


def test_ingredients_name_the_largest_gain_in_the_network():
    rows = [
        results.row(method, "speedup", value, value - 0.1, value + 0.1, 3, ingredient=ingredient, place=place)
        for ingredient, method, place, value in (
            ("zero point", "hoisted", "layer", 9.0),
            ("zero point", "hoisted", "network", 3.0),
            ("layout", "nhwc", "network", 1.2),
        )
    ]
    assert title(nb18.ingredients(pd.DataFrame(rows))) == (
        "Largest gain in the network: zero point, hoisted, 3.0 times"
    )


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
        results.row(name, "milliseconds", value, value, value, 3, batch=8) for name, value in times.items()
    ]
    assert (
        title(nb18.unfused(pd.DataFrame(rows)))
        == "Unfused int8 takes 1.5 times as long as FP32, fused 0.25 times"
    )


def test_the_race_is_headed_by_our_lead():
    timings = {
        name: Timing(seconds, seconds, seconds, (seconds,) * 3)
        for name, seconds in {"fp32": 4.0, "openvino": 0.5, "integer_openvino": 0.4, "integer": 0.8}.items()
    }
    table = pd.DataFrame([row for size in (1, 8) for row in speeds(timings, size) + leads(timings, size)])
    drawn = nb18.images_per_second(table)
    assert title(drawn) == "Our integers run at 1.25 times the speed of OpenVINO int8 (NNCF) at batch 8"
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()][0] == "integer on OpenVINO"

"""The figures of notebook 16 on made-up tables, and what their titles read from them."""

import pandas as pd

from quantlib.study import results
from quantlib.study.figures import nb16
from quantlib.study.fires import VARIANTS
from tests.study.titles import title


def test_titles_say_what_the_tables_say():
    size = {name: 8e6 / 2**place for place, name in enumerate(VARIANTS)}
    rows = [
        results.row(name, metric, value * (1 if metric == "parameters" else 100))
        for name, value in size.items() for metric in ("parameters", "macs")
    ]  # fmt: skip
    assert "8.0 times fewer parameters, 8.0 times fewer multiply-adds" in title(
        nb16.cost_by_variant(pd.DataFrame(rows))
    )
    rows = [
        results.row(name, "accuracy", 90 - place, 89 - place, 91 - place, 10_000, parameters=size[name])
        for place, name in enumerate(VARIANTS)
    ]
    said = title(nb16.accuracy_by_parameters(pd.DataFrame(rows)))
    assert "loses 3.0 points with 8.0 times fewer parameters" in said
    rows = [
        results.row(name, "speedup", 2 + place, 1, 9, 7, batch=batch, fewer_macs=3 * (1 + place))
        for place, name in enumerate(["fp32_folded", *VARIANTS]) for batch in (1, 64)
    ]  # fmt: skip
    said = title(nb16.time_by_arithmetic(pd.DataFrame(rows)))
    assert said == "15.0 times fewer multiply-adds than ResNet-50 run 6.0 times as fast"

"""The figures of notebook 17 on made-up tables, and what their titles read from them."""

import pandas as pd

from quantlib.study import results
from quantlib.study.figures import nb17
from tests.study.titles import title


def test_titles_say_what_the_tables_say():
    held = {"weights": [40, 60, 80, 91, 100], "outputs": [80, 92, 97, 99, 100]}
    rows = [
        results.row(name, "percent_held", value, n=16, layer="conv", rank=rank)
        for name, values in held.items() for rank, value in enumerate(values, 1)
    ]  # fmt: skip
    assert "outputs need 2 of 5 ranks, of the weights 4" in title(nb17.energy_by_rank(pd.DataFrame(rows)))
    quality = {"channel": 18, "spatial": 24, "tucker2": 20}
    rows = [
        results.row(name + kind, "sqnr_db", value - less - 10 * (0.5 - share), layer=layer, share=share)
        for name, value in quality.items() for kind, less in (("", 0), ("_plain", 6))
        for share in (0.5, 0.3) for layer in "ab"
    ]  # fmt: skip
    said = title(nb17.error_by_method(pd.DataFrame(rows)))
    assert "spatial SVD is best with 24 dB" in said and "channel SVD 6 dB" in said
    rows = [
        results.row(rule, "drop", loss * (1 - share), -1, 9, 3000, macs=share, parameters=1)
        for rule, loss in (("budget", 2), ("uniform", 12), ("energy", 40), ("tuned", 0.4))
        for share in (0.5, 0.4)
    ]  # fmt: skip
    said = title(nb17.drop_by_share(pd.DataFrame(rows)))
    assert "one budget 1.0, uniform 6.0, by energy 20.0" in said
    rows = [
        results.row("lowrank", "speedup", 0.8 / share, 0.7 / share, 0.9 / share, 7, macs=share, batch=batch)
        for share in (0.5, 0.4) for batch in (1, 64)
    ]  # fmt: skip
    said = title(nb17.time_against_arithmetic(pd.DataFrame(rows)))
    assert said.startswith("40 % of the multiply-adds run 2.00 times as fast at batch 64, not 2.50 times")

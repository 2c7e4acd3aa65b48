"""The figures of notebooks 11 and 12 on made-up tables of full size, and what their titles read from them."""

import pandas as pd
import pytest

from quantlib.study import plots, results
from quantlib.study.figures import nb11, nb12
from tests.study.titles import title

SPARSITIES = (0.2, 0.5, 0.8, 0.9, 0.95)
EDGE = {"random": 0.1, "layer": 0.5, "global": 0.8, "recalibrated": 0.8, "blocks": 0.9, "retrained": 0.95}


def drop(method, value, n=2000, **columns):
    return results.row(method, "drop", value, value - 0.3, value + 0.3, n, **columns)


def read_back(rows, tmp_path):
    """Through a CSV, as a recorded result comes."""
    results.write_table(tmp_path / "table.csv", pd.DataFrame(rows))
    return pd.read_csv(tmp_path / "table.csv")


@pytest.fixture
def curve(tmp_path):
    rows = [results.row("fp32", "accuracy", 94.0, 93.0, 95.0, 2000, sparsity=0.0)]
    for method, edge in EDGE.items():
        rows += [drop(method, 0.2 if s <= edge else 100 * (s - edge), sparsity=s) for s in SPARSITIES]
    return read_back(rows, tmp_path)


def test_harmless_shares_are_read_from_the_curve(curve):
    assert [nb11.harmless(curve, name) for name in EDGE] == [0.0, 0.5, 0.8, 0.8, 0.9, 0.95]
    assert [nb11.may_go(curve, name) for name in ("random", "blocks")] == ["under 20%", "90%"]
    said = title(nb11.accuracy_over_sparsity(curve))
    assert "80% of the weights without repair" in said and "80% with new" in said
    assert "90% by LAMP after blocks have learned" in said and said.endswith("95% after one epoch")
    long = pd.concat([curve, pd.DataFrame([drop("retrained_long", 0.4, sparsity=0.9)])])
    assert title(nb11.accuracy_over_sparsity(long)).endswith("90% by LAMP after a long retraining")


def test_harmless_stops_at_the_first_point_that_is_not():
    rows = [drop("global", value, sparsity=s) for s, value in ((0.5, 0.2), (0.6, 1.2), (0.7, 0.9))]
    assert nb11.harmless(pd.DataFrame(rows), "global") == 0.5


def test_blocks_are_shown_where_most_was_dropped(tmp_path):
    errors = {"conv1": (0.4, 0.1), "layer1.0.conv1": (0.6, 0.3), "fc": (0.9, 0.1)}
    rows = [
        results.row(method, metric, value / factor, block=name, sparsity=sparsity)
        for method, sparsity, factor in (("blocks", 0.8, 10), ("blocks", 0.95, 1), ("blocks_global", 0.95, 7))
        for name, pair in errors.items()
        for metric, value in zip(("error_before", "error_after"), pair, strict=True)
    ]
    said = title(nb11.error_of_blocks(read_back(rows, tmp_path)))
    assert said.startswith("95% of the weights dropped by LAMP") and "block by 4.0 (median)" in said


def test_layers_and_thinned(tmp_path):
    shares = {
        "conv1": (0.9, 1728),
        "layer1.0.conv1": (0.5, 4096),
        "fc": (0.4, 20480),
        "layer4.2.conv2": (0.01, 2_359_296),
    }
    rows = [
        results.row("global", "left", left, layer=name, weights=count, sparsity=0.9)
        for name, (left, count) in shares.items()
    ]
    assert title(nb11.what_is_left_of_each_layer(read_back(rows, tmp_path))).startswith(
        "One threshold leaves 90 % of conv1 and 1.0 % of layer4.2.conv2"
    )
    rows = [drop("masked", 0.4, share=0.95, repair="retrained")]
    rows += [
        drop("thinned", 4 * share, share=share, repair=how)
        for share in (0.25, 0.5)
        for how in ("none", "retrained")
    ]
    structured = read_back(rows, tmp_path)
    times = {("fp32", 0.0): 1.0, ("masked", 0.95): 0.98, ("thinned", 0.25): 1.7, ("thinned", 0.5): 3.1}
    rows = [
        results.row(name, "speedup", value, value - 0.1, value + 0.1, 9, share=share, batch=16)
        for (name, share), value in times.items()
    ]
    said = title(nb11.accuracy_over_time(structured, read_back(rows, tmp_path)))
    assert said == "Zeros in place: 0.98 times as fast. Filters gone: up to 3.1 times"


def test_tickets_by_start(tmp_path):
    lost = {"ticket": 2.0, "rewound": 1.0, "retrained": 0.5, "reinitialized": 3.0, "random_mask": 4.0}
    rows = [results.row("dense", "accuracy", 88.0, n=10_000, left=1.0, seeds=1)]
    for arm, most in lost.items():
        for left in (0.5, 0.2, 0.1, 0.05):
            seeds = 1 if left == 0.5 else 3
            value = most * 0.05 / left
            rows.append(drop(arm, value, 10_000, left=left, seeds=seeds))
            rows += [
                results.row(arm, "drop_of_seed", value + 0.1 * (s - 1), n=10_000, left=left, seed=s, seeds=1)
                for s in range(seeds)
            ]
    made = nb12.accuracy_by_start(read_back(rows, tmp_path))
    plots.save(made, tmp_path / "tickets.png")
    assert title(made) == (
        "With 5% of the weights a new start loses 3.0 points, a ticket 2.0,\nrewound 1.0, retrained 0.5"
    )

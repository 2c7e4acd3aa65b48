"""Rows, fronts and verdicts of the scoreboard: size of the file, measured time, accuracy; notebook 19.

Notebooks 16 and 17 record such rows for their own race. The claims of the whole course are settled by
notebook 19's, where all networks are evaluated on the same images and timed in one race.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from quantlib.study import results
from quantlib.study.manifest import Course, find_root
from quantlib.study.session import Session
from quantlib.subject.benchmark import Timing, ratio
from quantlib.subject.evaluation import Evaluation


def scoreboard_rows(
    run: Session,
    method: str,
    found: Evaluation,
    megabytes: float,
    timings: Mapping[int, Mapping[str, Timing]],
    baseline: str = "fp32_folded",
) -> list[dict[str, Any]]:
    """Rows of accuracy, megabytes (10^6 bytes on disk) and speedup by batch size, for one network.

    `timings`: what `race` gave, with `method` and `baseline`, the folded float32 ResNet-50, in it.
    Introduced in notebook 16.
    """
    rows = [
        run.row(method, found, batch=0),
        run.row(method, megabytes, metric="megabytes", batch=0),
    ]
    for size, seconds in timings.items():
        times, low, high = ratio(seconds, baseline, method)
        n = len(seconds[method].runs)
        rows.append(run.row(method, times, metric="speedup", low=low, high=high, n=n, batch=size))
    return rows


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One line a network: accuracy, megabytes, speedup at each batch size, and drop where it is recorded.

    Introduced in notebook 16.
    """
    names = [
        f"{row.metric}_b{row.batch}" if row.metric == "speedup" else row.metric for row in table.itertuples()
    ]
    order = list(dict.fromkeys(table["method"]))
    return table.assign(column=names).pivot(index="method", columns="column", values="value").loc[order]


def front(board: pd.DataFrame, cost: str, gain: str = "accuracy", cheap: str = "low") -> list[str]:
    """The Pareto front: networks than which no other has at most their cost and at least their gain.

    board: one line a network, as `wide` makes it; `cheap`: whether a "low" or a "high" cost is wanted, as
    for megabytes and for speedup. Of networks equal in both, all stay. Cheapest first. Introduced in
    notebook 19.

    >>> front(pd.DataFrame({"mb": [1, 2, 3], "accuracy": [90, 89, 95]}, index=["a", "b", "c"]), "mb")
    ['a', 'c']
    """
    sign = 1 if cheap == "low" else -1
    points = {str(name): (sign * row[cost], row[gain]) for name, row in board.iterrows()}
    kept = [
        name for name, (price, value) in points.items()
        if not any(p <= price and v >= value and (p, v) != (price, value) for p, v in points.values())
    ]  # fmt: skip
    return sorted(kept, key=lambda name: points[name])


def best_within(
    board: pd.DataFrame, metric: str, low: float, high: float, by: str = "accuracy"
) -> str | None:
    """The network best in column `by` whose `metric` lies in [low, high], the smaller file among equals.

    Introduced in notebook 19.
    """
    inside = board[board[metric].between(low, high)]
    if inside.empty:
        return None
    return str(inside.sort_values([by, "megabytes"], ascending=[False, True]).index[0])


def predictions_made(root: Path | None = None) -> pd.DataFrame:
    """Every prediction of a full run beside its measurement: scores_NN.csv, with the notebook's number.

    Introduced in notebook 19.
    """
    folder = (root or find_root()) / "results"
    tables = [
        results.read_table(path).assign(notebook=path.stem.removeprefix("scores_"))
        for path in sorted(folder.glob("scores_[0-9][0-9].csv"))
    ]
    columns = ["name", "predicted", "measured", "tolerance", "within", "unit", "notebook"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def ledger(course: Course, profile: str = "full") -> pd.DataFrame:
    """One line a claim: text, verdict ("open" until its notebook ran), evidence, what is published.

    Introduced in notebook 19.
    """
    lines = []
    for claim in course.claims:
        path = results.kept_in(profile, course.root) / f"claims_{claim.notebook}.csv"
        found = results.read_table(path).set_index("id") if path.is_file() else pd.DataFrame()
        settled = claim.id in found.index
        verdict, evidence = found.loc[claim.id, ["verdict", "evidence"]] if settled else ("open", "")
        lines.append(
            {"id": claim.id, "text": claim.text, "verdict": verdict, "evidence": evidence,
             "published": claim.published, "notebook": claim.notebook}
        )  # fmt: skip
    return pd.DataFrame(lines)

"""What every small network is judged by: size of the file, measured time, accuracy; notebook 19 compares.

Each notebook that makes a network smaller or faster records `NN_scoreboard`: for each network its accuracy,
its megabytes on disk, and how many times as fast as the folded float32 ResNet-50 it ran, in the same race.
The claim "changing the architecture beats tweaking the bit depth" is settled by these rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from quantlib.study import results
from quantlib.study.manifest import find_root
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


def gathered(root: Path | None = None) -> pd.DataFrame:
    """The scoreboard rows of every full run that recorded some, with their notebook's number."""
    folder = (root or find_root()) / "results"
    tables = [
        results.load(path.stem, "full", root).assign(notebook=path.stem.split("_")[0])
        for path in sorted(folder.glob("[0-9][0-9]_scoreboard.csv"))
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One line a network: accuracy, megabytes, speedup at each batch size."""
    names = [
        f"{row.metric}_b{row.batch}" if row.metric == "speedup" else row.metric for row in table.itertuples()
    ]
    order = list(dict.fromkeys(table["method"]))
    return table.assign(column=names).pivot(index="method", columns="column", values="value").loc[order]

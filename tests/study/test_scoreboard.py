"""Scoreboard rows, fronts and the ledger by hand, through the CSV and back."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlib.study import results, scoreboard, session
from quantlib.study.manifest import course
from quantlib.subject.benchmark import timing
from quantlib.subject.evaluation import Evaluation


def test_rows_say_accuracy_size_and_speed(tmp_path):
    run = SimpleNamespace(seed=3)
    run.row = lambda *args, **columns: session.Session.row(run, *args, **columns)
    found = Evaluation.of(np.array([1, 1, 0, 0]), np.array([1, 1, 1, 0]))
    race = {1: {"fp32_folded": timing([4.0, 6.0]), "small": timing([2.0, 2.0])}}
    rows = scoreboard.scoreboard_rows(run, "small", found, 0.5, race)
    assert [(row["metric"], row["value"], row["batch"]) for row in rows] == [
        ("accuracy", 75.0, 0), ("megabytes", 0.5, 0), ("speedup", 2.5, 1),
    ]  # fmt: skip
    assert (rows[2]["low"], rows[2]["high"], rows[2]["n"]) == (2.0, 3.0, 2)
    results.write_table(tmp_path / "board.csv", pd.DataFrame(rows))
    assert scoreboard.wide(pd.read_csv(tmp_path / "board.csv")).loc["small"].to_dict() == {
        "accuracy": 75.0, "megabytes": 0.5, "speedup_b1": 2.5,
    }  # fmt: skip


BOARD = pd.DataFrame(
    {"megabytes": [94, 24, 12, 6, 1.1, 0.3], "speedup": [1, 4, 4, 4, 15, 9],
     "accuracy": [95.0, 95.1, 94.9, 92.2, 92.3, 92.1]},
    index=["float", "int8", "w4", "w2", "small", "tiny"],
)  # fmt: skip


def test_fronts_by_hand():
    assert scoreboard.front(BOARD, "megabytes") == ["tiny", "small", "w4", "int8"]
    assert scoreboard.front(BOARD, "speedup", cheap="high") == ["small", "int8"]
    twins = pd.DataFrame({"megabytes": [1, 1], "accuracy": [90, 90]}, index=["a", "b"])
    assert scoreboard.front(twins, "megabytes") == ["a", "b"]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_whoever_is_off_the_front_is_beaten_by_someone_on_it(points):
    board = pd.DataFrame(points, columns=["megabytes", "accuracy"]).rename(index=str)
    kept = scoreboard.front(board, "megabytes")
    for name, row in board.iterrows():
        beaten = [
            other for other in kept
            if board.at[other, "megabytes"] <= row["megabytes"]
            and board.at[other, "accuracy"] >= row["accuracy"] and tuple(board.loc[other]) != tuple(row)
        ]  # fmt: skip
        assert bool(beaten) != (name in kept)


def test_the_best_within_a_budget():
    assert scoreboard.best_within(BOARD, "megabytes", 0, 12) == "w4"
    assert scoreboard.best_within(BOARD, "speedup", 9, np.inf) == "small"
    assert scoreboard.best_within(BOARD, "megabytes", 0, 0.1) is None


def test_the_ledger_has_every_claim_and_leaves_the_unsettled_open(tmp_path, monkeypatch):
    loaded = course()
    lines = scoreboard.ledger(loaded).set_index("id")
    assert list(lines.index) == [claim.id for claim in loaded.claims]
    elsewhere = SimpleNamespace(root=tmp_path, claims=loaded.claims)
    (tmp_path / "results").mkdir()
    row = {"id": "minus-128", "text": "?", "verdict": "fails", "evidence": "0.1 points"}
    results.write_table(tmp_path / "results/claims_05.csv", pd.DataFrame([row]))
    found = scoreboard.ledger(elsewhere).set_index("id")
    assert found.loc["minus-128", ["verdict", "evidence"]].tolist() == ["fails", "0.1 points"]
    assert set(found.drop("minus-128")["verdict"]) == {"open"}


def test_predictions_of_full_runs_with_their_notebook(tmp_path):
    (tmp_path / "results").mkdir()
    assert scoreboard.predictions_made(tmp_path).empty
    line = {"name": "a", "predicted": 1, "measured": 3, "tolerance": 1, "within": False, "unit": "x"}
    results.write_table(tmp_path / "results/scores_07.csv", pd.DataFrame([line]))
    made = scoreboard.predictions_made(tmp_path)
    assert made["notebook"].tolist() == ["07"] and not made["within"].any()


def test_a_model_that_is_not_there_is_one_sentence(capsys):
    run = session.start("01")
    assert run.model_if_there("resnet50_of_nobody") is None
    assert "checkpoints/resnet50_of_nobody is not recorded yet." in capsys.readouterr().out
    with pytest.raises(ZeroDivisionError):
        run.model_if_there("resnet50", load=lambda name: 1 / 0)

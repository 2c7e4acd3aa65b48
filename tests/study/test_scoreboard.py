"""Scoreboard rows by hand, through the CSV and back."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from quantlib.study import results, scoreboard, session
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
    results.write_table(tmp_path / "results/16_scoreboard.csv", pd.DataFrame(rows))
    table = scoreboard.gathered(tmp_path)
    assert set(table["notebook"]) == {"16"}
    assert scoreboard.wide(table).loc["small"].to_dict() == {
        "accuracy": 75.0, "megabytes": 0.5, "speedup_b1": 2.5,
    }  # fmt: skip


def test_nothing_recorded_is_an_empty_table(tmp_path):
    (tmp_path / "results").mkdir()
    assert scoreboard.gathered(tmp_path).empty


def test_a_model_that_is_not_there_is_one_sentence(capsys):
    run = session.start("01")
    assert run.model_if_there("resnet50_of_nobody") is None
    assert "checkpoints/resnet50_of_nobody is not recorded yet." in capsys.readouterr().out
    with pytest.raises(ZeroDivisionError):
        run.model_if_there("resnet50", load=lambda name: 1 / 0)

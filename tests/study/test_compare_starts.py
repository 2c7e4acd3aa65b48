"""Arms of a comparison of starts: each its own recipe, resumable, one table of all that are done."""

import json

import pandas as pd
import pytest

from quantlib.errors import ConfigError
from quantlib.study import compare_starts
from quantlib.study.compare_starts import load_arms
from quantlib.subject import data
from quantlib.subject.evaluation import wilson
from quantlib.subject.trainer import Trainer

RECIPE = """
model = "resnet20"
batch_size = 16
stages = [[1, 16]]
[arms.plain]
[arms.muon]
optimizer = "muon"
[arms.large_batch]
batch_size = 32
"""


def test_the_committed_arms_differ_from_the_recipe_that_was_chosen_in_what_they_name():
    arms = load_arms("resnet50_starts")
    assert [(a.optimizer, a.muon_learning_rate, a.learning_rate) for a in arms.values()][:5] == [
        ("muon", 0.05, 0.1), ("muon", 0.1, 0.1), ("muon", 0.02, 0.1), ("sgd", 0.05, 0.1), ("sgd", 0.05, 0.4),
    ]  # fmt: skip
    assert arms["muon_005_24px"].resolution(0) == 24 and arms["muon_005_batch_128"].batch_size == 128
    with pytest.raises(ConfigError, match="has no arms"):
        load_arms("resnet50")


def test_arms_are_trained_recorded_and_resumed(tmp_path, monkeypatch, capsys):
    images = data.load("calibration").take(64)
    monkeypatch.setattr(data, "load", lambda split, source, root=None: images)
    monkeypatch.setattr(compare_starts.results, "find_root", lambda: tmp_path)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE)
    command = ["--recipe", str(recipe), "--folder", str(tmp_path / "state"), "--threads", "1", "--no-compile"]
    step = Trainer.train_step

    def interrupted(trainer):
        trainer.stop = trainer.recipe.name == "muon" and trainer.step == 1
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert compare_starts.main(command) == 130
    table = tmp_path / "build/results/mine/01_starts.csv"
    assert set(pd.read_csv(table)["method"]) == {"plain"}  # what is done is there
    monkeypatch.setattr(Trainer, "train_step", step)
    assert compare_starts.main(command) == 0
    said = capsys.readouterr().out
    assert "plain: 4 steps, from step 4" in said and "muon: 4 steps, from step 2" in said

    rows = pd.read_csv(table).set_index(["method", "metric"])
    assert rows.loc[("large_batch", "loss"), "steps"] == 2 and len(rows) == 9
    for arm in ("plain", "muon", "large_batch"):
        log = pd.read_csv(tmp_path / "state" / arm / "log.csv").iloc[-1]
        found = rows.loc[(arm, "validation_accuracy")]
        right = round(found["value"] * 64 / 100)
        assert found["value"] == pytest.approx(log["validation_accuracy"]) and found["n"] == 64
        assert (found["low"], found["high"]) == pytest.approx(wilson(right, 64))
        assert rows.loc[(arm, "loss"), "value"] == pytest.approx(log["loss"], rel=1e-5)
    assert json.loads(table.with_suffix(".json").read_text())["profile"] == "mine"

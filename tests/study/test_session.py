"""A session writes where its profile says, and nothing of a quick run reaches results/."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from quantlib import study
from quantlib.errors import QuantlibError, StudyError
from quantlib.study import origin, results
from quantlib.subject import data
from quantlib.subject.evaluation import Evaluation, compare


@pytest.fixture
def measured():
    labels = np.arange(100) % 10
    wrong = labels.copy()
    wrong[:4] = (wrong[:4] + 1) % 10
    return Evaluation.of(labels.copy(), labels), Evaluation.of(wrong, labels)


def with_threads(text):
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("QUANTLIB_THREADS", text)
        study.start("01")


def use(run, a, b):
    """Everything a notebook records."""
    table = run.record("things", [run.row("fp32", a, bits=32), run.row("mse", b, bits=8)])
    run.predictions("w8a8", b)
    run.headline("w8a8_drop", 4.0, 1.0, 8.0, 100, "points")
    run.score("drop", 3, 4, 2, "points")
    run.claim("first", "holds with limits", "it did")
    return table


def test_quick_never_touches_results_and_full_does(small_course, measured):
    use(study.start("01"), *measured)
    assert not (small_course / "results").exists()
    quick = small_course / "build" / "results" / "quick"
    use(study.start("01", profile="full"), *measured)
    full = small_course / "results"
    names = {str(path.relative_to(quick)) for path in quick.rglob("*.*")}
    assert names == {str(path.relative_to(full)) for path in full.rglob("*.*")} == {
        "01_things.csv", "01_things.json", "headline.csv", "scores_01.csv", "claims_01.csv",
        "predictions/01_w8a8.npz"}  # fmt: skip
    assert pd.read_csv(quick / "01_things.csv").columns.equals(pd.read_csv(full / "01_things.csv").columns)
    assert (full / "predictions/01_w8a8.npz").stat().st_size < 1500


def test_what_is_recorded_comes_back(small_course, measured, capsys):
    run = study.start("01", profile="full")
    a, b = measured
    assert run.recorded("things").empty
    assert (
        "results/01_things.csv is not recorded yet; `make study PROFILE=full ONLY=01`"
        in capsys.readouterr().out
    )
    table = use(run, a, b)
    pd.testing.assert_frame_equal(run.recorded("things"), table, check_dtype=False, atol=1e-6)
    pd.testing.assert_frame_equal(study.start("02").recorded("things", notebook="01"), run.recorded("things"))
    study.start("02").show_recorded("things")  # nothing there: says so and shows nothing
    assert "mse" not in capsys.readouterr().out
    study.start("01").show_recorded("things")
    shown = capsys.readouterr().out
    assert "96.00 [90.16, 98.43]" in shown and "n = 100 test images" in shown
    kept = study.start("01").recorded_predictions("w8a8")
    assert compare(a, kept).drop == 4.0
    with pytest.raises(StudyError, match="predictions/01_nothing.npz is not there"):
        run.recorded_predictions("nothing")


def test_what_a_command_has_recorded_is_passed_on_with_its_own_provenance(small_course, measured, capsys):
    run = study.start("01")
    assert run.adopt("things").empty and "is not recorded yet" in capsys.readouterr().out
    results.record("01_things", [results.row("a", "loss", 1.5)], {"device": "GPU"}, "full", small_course)
    before = (small_course / "results/01_things.json").read_bytes()
    for profile in ("quick", "full"):
        assert study.start("01", profile=profile).adopt("things")["value"].tolist() == [1.5]
    assert (small_course / "results/01_things.json").read_bytes() == before
    assert (small_course / "build/results/quick/01_things.json").read_bytes() == before


def test_an_empty_frame_has_the_columns_of_this_run(small_course, measured):
    run = study.start("01")
    table = use(run, *measured)
    assert list(run.recorded("things").columns) == list(table.columns) and run.recorded("things").empty


def test_provenance_says_where_a_number_comes_from(small_course, measured, monkeypatch):
    network = torch.nn.Linear(3, 2)
    monkeypatch.setattr("quantlib.subject.checkpoints.load_checkpoint", lambda name: network)
    monkeypatch.setattr("quantlib.subject.checkpoints.checkpoint_info", lambda name: {"sha256": "ab" * 32})
    run = study.start("01", seed=3)
    assert len(run.images("test")) == 16 and run.model("resnet50") is network
    elsewhere = data.load("validation").take(3)
    run.used(elsewhere, replace(elsewhere, split="train", md5=""))  # what was changed has no md5
    use(run, *measured)
    origin = json.loads((small_course / "build/results/quick/01_things.json").read_text())
    assert origin["profile"] == "quick" and origin["seed"] == 3 and origin["device"] == "cpu"
    assert origin["checkpoints"] == {"resnet50": "ab" * 32} and len(origin["data"].pop("test")) == 32
    assert origin["data"] == {"validation": elsewhere.md5}
    assert origin["versions"]["torch"].startswith("2.") and origin["machine"]["threads"] == run.threads
    assert {"cpu", "isa"} <= set(origin["machine"]) and origin["commit"] and origin["date"][:2] == "20"
    assert str(small_course) not in json.dumps(origin)


def test_images_are_the_same_for_everyone_and_calibration_follows_the_seed(small_course):
    first, second = study.start("01", seed=0), study.start("02", seed=1)
    assert first.images("test").md5 == second.images("test").md5
    assert first.images("calibration", 20).md5 != second.images("calibration", 20).md5
    assert first.images("calibration", 20).md5 == second.images("calibration", 20, seed=0).md5
    assert len(first.images("validation")) == 500  # the profile names no number: all of the slice


def test_profile_argument_beats_environment_beats_quick(small_course, monkeypatch):
    assert study.start("01").profile == "quick"
    monkeypatch.setenv("QUANTLIB_PROFILE", "full")
    assert study.start("01").profile == "full" and study.start("01", profile="quick").profile == "quick"


def test_scores_and_claims(small_course, measured, capsys):
    run = study.start("01")
    capsys.readouterr()
    assert run.score("drop", 0.3, 0.11, 0.2, "points") is True
    assert run.score("drop", 0.3, 0.61, 0.2) is False  # a wrong prediction stays and stops nothing
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "predicted 0.3 points | measured 0.11 points | within: True"
    assert len(pd.read_csv(small_course / "build/results/quick/scores_01.csv")) == 1  # a cell run twice
    study.start("01").score("other", 1, 1, 1)  # a run that stops here costs the others nothing
    assert list(pd.read_csv(small_course / "build/results/quick/scores_01.csv")["name"]) == ["drop", "other"]
    with pytest.raises(StudyError, match="settled in notebook 02"):
        run.claim("second", "holds", "")
    with pytest.raises(StudyError, match="choose one of holds, holds with limits, fails"):
        run.claim("first", "maybe", "")
    run.check("two is two", np.bool_(True))
    with pytest.raises(AssertionError, match="not so: two is three"):
        run.check("two is three", 2 == 3)


def test_a_goal_is_judged_by_many_images_only(small_course):
    run = study.start("02")
    assert [run.goal(0.2 <= 0.3, n) for n in (48, 10000)] == ["not judged by 48 images", "met"]
    assert run.goal(0.4 <= 0.3, 1000.0) == "missed"


def test_a_claim_that_an_earlier_run_settled_stays_until_it_is_settled_anew(small_course, measured):
    path = small_course / "build/results/quick/claims_01.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("id,text,verdict,evidence\nanother,Another.,holds,before\n")
    for verdict in ("holds", "fails"):
        study.start("01").claim("first", verdict, "seen")
    assert pd.read_csv(path).set_index("id")["verdict"].to_dict() == {"another": "holds", "first": "fails"}


def test_headline_is_updated_in_place(small_course):
    run = study.start("01", profile="full")
    for name, value in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        run.headline(name, value, unit="%")
    table = pd.read_csv(small_course / "results/headline.csv")
    assert list(table["name"]) == ["a", "b"] and list(table["value"]) == [3.0, 2.0]
    assert tuple(table.columns) == results.HEADLINE_COLUMNS


@pytest.mark.parametrize("use_wrongly, words", [
    (lambda run: run.record("other", [{"a": 1}]), "does not list '01_other'"),
    (lambda run: run.record("things", []), "no rows"),
    (lambda run: run.record("things", [{"a": 1, "b": 2}, {"a": 1}]), "Row 1 and row 0 differ in the columns"),
    (lambda run: run.row("mse", 0.5), "Say which metric"),
    (lambda run: study.start("01", device="cudda"), "There is no device 'cudda'"),
    (lambda run: study.start("77"), "There is no notebook '77'"),
    (lambda run: study.start("01", profile="x"), "There is no profile 'x'"),
    (lambda run: with_threads("two"), "QUANTLIB_THREADS is 'two'; give a number of threads, 1 or more"),
    (lambda run: with_threads("0"), "QUANTLIB_THREADS is '0'"),
])  # fmt: skip
def test_wrong_use_has_its_sentence(small_course, use_wrongly, words):
    with pytest.raises(QuantlibError, match=words):
        use_wrongly(study.start("01"))


def test_changed_parameters_write_elsewhere_even_in_a_full_run(small_course, measured, monkeypatch):
    monkeypatch.setenv("QUANTLIB_RESULTS", "build/results/full-changed")
    use(study.start("01", profile="full"), *measured)
    assert not (small_course / "results").exists()
    assert (small_course / "build/results/full-changed/01_things.csv").is_file()


def test_a_failed_write_leaves_the_old_file(small_course, monkeypatch):
    path = small_course / "results" / "x.csv"
    results.write_atomic(path, b"old")

    def full(source, target):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StudyError, match="x.csv could not be written: No space left on device"):
        results.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and [entry.name for entry in path.parent.iterdir()] == ["x.csv"]


def test_a_damaged_result_has_its_sentence(small_course):
    results.write_atomic(small_course / "results" / "01_things.csv", b"")
    for read in (results.load, study.start("01").recorded, study.start("01").best):
        with pytest.raises(StudyError, match="results/01_things.csv is damaged"):
            read("01_things" if read is results.load else "things")  # never as if it were not there
    results.write_atomic(small_course / "results" / "headline.csv", b"")
    with pytest.raises(StudyError, match="results/headline.csv is damaged"):
        study.start("01", profile="full").headline("a", 1.0)


def test_damaged_provenance_has_its_sentence(small_course, measured):
    run = study.start("01", profile="full")
    use(run, *measured)
    for content in (b"\xff\xfe", b"{", b"[1]"):
        (small_course / "results" / "01_things.json").write_bytes(content)
        with pytest.raises(StudyError, match="results/01_things.json .*restore it from git"):
            run.recorded("things")


def _put(root, name):
    for value in range(20):
        results.headline(f"{name}{value}", value, 0, 0, 0, "", "01_things", "full", root)


def test_two_notebooks_at_once_lose_no_headline(small_course):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_put, args=(small_course, name)) for name in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert len(results.load("headline")) == 40


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_says_whether_the_library_differs_from_it(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    assert origin.commit(tmp_path) == "unknown"  # nothing is committed yet
    module = tmp_path / "quantlib" / "module.py"
    results.write_atomic(module, b"x = 1")
    git("add", ".")
    git("commit", "-m", "first")
    head = origin.commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{12}", head)
    (tmp_path / "notes.md").write_text("x")
    assert origin.commit(tmp_path) == head  # not the library's
    module.write_text("x = 2")
    assert origin.commit(tmp_path) == head + "+"
    module.write_text("x = 1")
    (tmp_path / "course.toml").write_text("")
    assert origin.commit(tmp_path) == head + "+"  # it decides settings, and is not committed

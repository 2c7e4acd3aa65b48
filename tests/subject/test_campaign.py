"""Runs side by side: each once, none before what it needs, errors come out."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantlib.errors import ConfigError
from quantlib.subject.campaign import (
    RESULT,
    keep_result,
    kept_results,
    of_one_plan,
    side_by_side,
    take_over,
)


def double(run: int) -> int:
    time.sleep(0.02 * (run % 3))
    return 2 * run


def fails(run: int) -> int:
    raise ValueError(f"run {run}")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_run_is_done_once(workers):
    assert dict(side_by_side(range(6), double, workers)) == {run: 2 * run for run in range(6)}


def test_one_worker_keeps_the_order():
    assert [run for run, _ in side_by_side([3, 1, 2], double)] == [3, 1, 2]


def test_no_run_is_given_out_before_those_it_needs():
    # 4 needs 2 and 3, which need 1; 9 is of an earlier campaign.
    needs = {1: {9}, 2: {1}, 3: {1}, 4: {2, 3}}
    order = [run for run, _ in side_by_side([4, 3, 2, 1], double, 2, lambda run: needs[run])]
    assert order[0] == 1 and order[-1] == 4 and sorted(order) == [1, 2, 3, 4]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_run_comes_out(workers):
    with pytest.raises(ValueError, match="run 7"):
        list(side_by_side([7], fails, workers))


def test_results_of_another_machine_are_taken_over_and_own_ones_kept(tmp_path):
    kept, folder = tmp_path / "results/runs", tmp_path / "cache/students/mine-1a2b"
    theirs, other = json.dumps({"settings": {"rate": 1}}), json.dumps({"settings": {"rate": 2}})
    for place, text in ((kept / "students/mine-1a2b", theirs), (kept / "students/other-3c4d", other)):
        for run in ("alone-0", "alone-1", "edited-0"):
            (place / run).mkdir(parents=True)
            (place / run / "result.json").write_text(text)
    (folder / "alone-0").mkdir(parents=True)
    (folder / "alone-0/result.json").write_text("own")
    runs = {"alone-0": {"rate": 1}, "alone-1": {"rate": 1}, "edited-0": {"rate": 3}, "absent-0": {"rate": 1}}
    take_over(folder, runs, kept)
    take_over(tmp_path / "cache/tickets/mine-1a2b", runs, kept)  # nothing is kept for it
    found = {str(path.relative_to(tmp_path / "cache")): path.read_text() for path in folder.rglob("*.json")}
    assert found == {"students/mine-1a2b/alone-0/result.json": "own",
                     "students/mine-1a2b/alone-1/result.json": theirs}  # fmt: skip
    assert not (tmp_path / "cache/tickets").exists()


def test_runs_that_wait_for_each_other_are_named():
    with pytest.raises(ConfigError, match="waits for a run that waits for it"):
        list(side_by_side([1, 2], double, 2, lambda run: {3 - run}))


def test_a_failed_run_is_said_at_once(capsys):
    with pytest.raises(ValueError, match="run 7"):
        list(side_by_side([7], fails, 2))
    assert "7 failed (run 7); the runs under way end first" in capsys.readouterr().out


def test_results_of_other_settings_are_refused(tmp_path):
    keep_result(tmp_path / "one" / RESULT, {"value": 1, "settings": {"epochs": 3}})
    keep_result(tmp_path / "old" / RESULT, {"value": 2})  # from before settings were kept
    runs = {"one": {"epochs": 3}, "absent": {}, "old": {"epochs": 3}}
    assert [found["value"] for found in kept_results(tmp_path, runs)] == [1, 2]
    with pytest.raises(ConfigError, match="one holds a run with other settings"):
        kept_results(tmp_path, {"one": {"epochs": 4}})


def test_a_folder_is_of_one_plan(tmp_path):
    folder = tmp_path / "students" / "a-1"
    of_one_plan(folder, "a-1")
    of_one_plan(folder, "a-1")
    with pytest.raises(ConfigError, match="made with plan a-1"):
        of_one_plan(folder, "b-2")


CAMPAIGN = """
import os, sys, time
from pathlib import Path
from quantlib.subject.campaign import side_by_side

def work(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    list(side_by_side([sys.argv[1]], work, workers=2))
"""


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_workers_leave_when_the_process_that_started_them_is_killed(tmp_path):
    script, folder = tmp_path / "campaign.py", tmp_path / "runs"
    script.write_text(CAMPAIGN)
    folder.mkdir()
    path = str(Path(__file__).parents[2])
    parent = subprocess.Popen([sys.executable, script, folder], env=os.environ | {"PYTHONPATH": path})
    while not (workers := [int(each.name) for each in folder.iterdir()]):
        assert parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while any(map(lives, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(lives, workers))

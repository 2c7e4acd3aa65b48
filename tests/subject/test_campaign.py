"""Runs side by side: each once, none before what it needs, errors come out."""

import time

import pytest

from quantlib.subject.campaign import side_by_side, take_over


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
    kept, folder = tmp_path / "results/unfinished", tmp_path / "cache/students/mine-1a2b"
    for place, text in ((kept / "students/mine-1a2b", "theirs"), (kept / "students/other-3c4d", "other")):
        for run in ("alone-0", "alone-1"):
            (place / run).mkdir(parents=True)
            (place / run / "result.json").write_text(text)
    (folder / "alone-0").mkdir(parents=True)
    (folder / "alone-0/result.json").write_text("own")
    take_over(folder, kept)
    take_over(tmp_path / "cache/tickets/mine-1a2b", kept)  # nothing is kept for it
    found = {str(path.relative_to(tmp_path / "cache")): path.read_text() for path in folder.rglob("*.json")}
    assert found == {"students/mine-1a2b/alone-0/result.json": "own",
                     "students/mine-1a2b/alone-1/result.json": "theirs"}  # fmt: skip
    assert not (tmp_path / "cache/tickets").exists()

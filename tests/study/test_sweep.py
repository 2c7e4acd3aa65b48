import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from quantlib.errors import ConfigError, StudyError
from quantlib.study import session
from quantlib.study import sweep as module
from quantlib.study.digests import EVALUATING, code_digest
from quantlib.study.sweep import Journal, sweep

NO_DASK = "Dask is not installed; `pip install -e '.[cluster]'` adds it"
SETTINGS = [{"bits": bits, "kind": kind} for bits in (8, 4, 2) for kind in ("a", "b")]


class Counted:
    """Remembers what it was called with; fails when it comes to `breaks`."""

    def __init__(self, breaks=None):
        self.calls, self.breaks = [], breaks

    def __call__(self, setting):
        self.calls.append(setting)
        if setting == self.breaks:
            raise ValueError("no such grid")
        return {"value": setting["bits"] / 3, "pair": (1, 2)}


def test_rows_in_order_each_setting_once(tmp_path):
    evaluate = Counted()
    rows = sweep(SETTINGS + SETTINGS[:2], evaluate, Journal(tmp_path / "a" / "sweep.jsonl"))
    assert rows == [{**setting, "value": setting["bits"] / 3, "pair": [1, 2]} for setting in SETTINGS]
    assert evaluate.calls == SETTINGS


def test_numbers_of_numpy_are_kept(tmp_path):
    """Hours of work must not end in a type that JSON does not know."""
    journal = Journal(tmp_path / "sweep.jsonl")
    row = {"value": np.float32(0.5), "count": np.int64(3), "tensor": torch.tensor(2.0)}
    (first,) = sweep(SETTINGS[:1], lambda setting: row, journal)
    assert first == {**SETTINGS[0], "value": 0.5, "count": 3.0, "tensor": 2.0}
    assert sweep(SETTINGS[:1], None, journal) == [first]


def test_a_broken_sweep_goes_on_where_it_stopped(tmp_path, capsys):
    journal = Journal(tmp_path / "sweep.jsonl")
    with pytest.raises(StudyError, match=r"'bits': 4.*'kind': 'b'.* failed \(ValueError: no such grid\)"):
        sweep(SETTINGS, Counted(SETTINGS[3]), journal)
    assert len(journal.finished()) == 3
    rest = Counted()
    rows = sweep(SETTINGS, rest, journal)
    assert rest.calls == SETTINGS[3:] and "3 of them finished before" in capsys.readouterr().out
    assert rows == sweep(SETTINGS, Counted(), Journal(tmp_path / "other.jsonl"))
    assert len(journal.path.read_text().splitlines()) == len(SETTINGS)
    journal.forget()
    journal.forget()
    assert not journal.finished()


def test_the_journal_of_a_full_sweep_lies_where_git_takes_it_along(small_course):
    places = {}
    for profile in ("quick", "full"):
        journal = Journal.of(session.start("02", profile=profile), "sweep", job="this")
        journal.keep(SETTINGS[0], {"value": 1})
        places[profile] = str(journal.path.relative_to(small_course))
        again = Journal.of(session.start("02", profile=profile), "sweep", job="this")
        assert list(again.finished()) == [again.key(SETTINGS[0])]  # found by the next session
        assert again.key(SETTINGS[0]) != Journal.of(session.start("02"), "sweep", job="x").key(SETTINGS[0])
    assert places["quick"] == "build/sweeps/quick/02_sweep.jsonl"
    assert places["full"] == "results/unfinished/02_sweep.jsonl"


def test_a_full_run_with_changed_parameters_leaves_the_journal_of_the_official_one_alone(
    small_course, monkeypatch
):
    monkeypatch.setenv("QUANTLIB_RESULTS", "build/results/full-changed")
    journal = Journal.of(session.start("02", profile="full"), "sweep")
    assert str(journal.path.relative_to(small_course)) == "build/sweeps/full/02_sweep.jsonl"


@pytest.mark.parametrize("cut", [1, 2, 25, 10_000])
def test_a_line_cut_off_by_a_kill_is_done_again_and_spoils_no_other(tmp_path, cut):
    journal = Journal(tmp_path / "sweep.jsonl")
    whole = sweep(SETTINGS, Counted(), journal)
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[: max(len(content) - cut, 0)])
    kept = len(journal.finished())
    assert kept == (0 if cut > len(content) else 6 if cut == 1 else 5)
    again = Counted()
    assert sweep(SETTINGS, again, journal) == whole and len(again.calls) == 6 - kept
    assert len(journal.finished()) == 6
    assert sweep(SETTINGS, Counted(SETTINGS[0]), journal) == whole  # nothing is left to be done


def test_a_killed_process_has_kept_its_rows(tmp_path):
    program = """
import os, sys
from quantlib.study.sweep import Journal, sweep
def evaluate(setting):
    if setting["bits"] == 3:
        os.kill(os.getpid(), 9)
    return {"value": setting["bits"]}
sweep([{"bits": bits} for bits in range(6)], evaluate, Journal(sys.argv[1]))
"""
    path = tmp_path / "sweep.jsonl"
    done = subprocess.run([sys.executable, "-c", program, str(path)], env=environment(), timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert sorted(result["value"] for result in Journal(path).finished().values()) == [0, 1, 2]


def test_another_context_is_another_sweep(tmp_path):
    path = tmp_path / "sweep.jsonl"
    sweep(SETTINGS, Counted(), Journal(path, {"checkpoint": "a"}))
    other = Counted()
    sweep(SETTINGS, other, Journal(path, {"checkpoint": "b"}))
    assert other.calls == SETTINGS
    assert len(code_digest()) == 16
    parts = [EVALUATING[:count] for count in range(1, len(EVALUATING) + 1)]
    assert len({code_digest(part) for part in parts}) == len(EVALUATING)
    assert code_digest() == code_digest(parts[-1])


def test_what_is_no_plain_data_is_refused(tmp_path):
    for setting in ({"model": object()}, {"x": float("nan")}):
        with pytest.raises(ConfigError, match="A setting holds text, numbers"):
            sweep([setting], Counted(), Journal(tmp_path / "sweep.jsonl"))


def test_dask_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(StudyError, match=r"pip install -e '\.\[cluster\]'"):
        sweep(SETTINGS, Counted(), Journal(tmp_path / "sweep.jsonl"), scheduler="tcp://127.0.0.1:1")


def test_rows_are_made_once_and_are_the_same_after_a_restart(tmp_path):
    made = []

    def make():
        made.append(1)
        return [{"value": 0.1, "low": math.nan, "pair": (1, 2)}]

    (first,) = Journal(tmp_path / "rows.jsonl").once({"ratio": 10}, make)
    (again,) = Journal(tmp_path / "rows.jsonl").once({"ratio": 10}, make)
    assert len(made) == 1 and repr(first) == repr(again) and first["pair"] == [1, 2]
    assert Journal(tmp_path / "rows.jsonl").once({"ratio": 20}, list) == []


def test_rows_of_other_code_are_made_anew(tmp_path):
    """The functions of a notebook's cells are in no room of the library."""
    journal = Journal(tmp_path / "rows.jsonl")
    assert journal.once({"ratio": 10}, lambda: [{"value": 1}]) == [{"value": 1}]
    assert journal.once({"ratio": 10}, lambda: [{"value": 2}]) == [{"value": 2}]


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers: three processes on this machine; the address, and the workers."""
    pytest.importorskip(
        "distributed", reason="Dask is not installed; `pip install -e '.[cluster]'` adds it"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, started = f"tcp://127.0.0.1:{port}", []

    def start(*arguments):
        command = [sys.executable, "-m", "dask", *arguments]
        started.append(subprocess.Popen(command, env=environment(), cwd=tmp_path, stderr=subprocess.DEVNULL))
        return started[-1]

    start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")
    workers = [start("worker", address, *options, "--name", name) for name in ("one", "two")]
    yield address, workers
    for process in started:
        process.kill()
        process.wait()


def test_two_worker_processes_one_killed_midway(tmp_path, cluster):
    import distributed

    address, workers = cluster
    marks = tmp_path / "marks"
    marks.mkdir()
    settings = [{"bits": bits} for bits in range(16)]

    here = os.getpid()

    def evaluate(setting, folder=str(marks)):
        # Nested, so that Dask sends the code itself; every call leaves a file with its process.
        with open(f"{folder}/{setting['bits']}_{os.getpid()}_{time.monotonic_ns()}", "w"):
            time.sleep(0 if os.getpid() == here else 0.25)
        return {"value": setting["bits"] ** 2}

    def seen():
        return {int(path.name.split("_")[1]) for path in marks.iterdir()}

    with distributed.Client(address, timeout=30) as client:
        client.wait_for_workers(2, timeout=30)

    def kill_one_when_both_work():
        journal = Journal(tmp_path / "sweep.jsonl")
        wait_for(lambda: workers[0].pid in seen() and len(journal.finished()) >= 3)
        workers[0].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_one_when_both_work)
    killer.start()
    journal = Journal(tmp_path / "sweep.jsonl")
    rows = sweep(settings, evaluate, journal, scheduler=address)
    killer.join()
    assert workers[0].wait(10) == -signal.SIGKILL and workers[1].poll() is None
    assert rows == sweep(settings, evaluate, Journal(tmp_path / "local.jsonl"))
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert sorted(line["setting"]["bits"] for line in lines) == list(range(16))
    assert {worker.pid for worker in workers} == seen() - {here}

    def broken(setting):
        return {"value": 1 // setting["bits"]}

    with pytest.raises(StudyError, match=r"'bits': 0.* failed \(ZeroDivisionError"):
        sweep(settings[:3], broken, Journal(tmp_path / "broken.jsonl"), scheduler=address)


def test_nobody_answers(tmp_path, monkeypatch, cluster):
    monkeypatch.setattr(module, "ANSWERS_WITHIN", 1)
    journal = Journal(tmp_path / "sweep.jsonl")
    with pytest.raises(StudyError, match="No Dask scheduler answers at tcp://127.0.0.1:9 .*`dask scheduler`"):
        sweep(SETTINGS, Counted(), journal, scheduler="tcp://127.0.0.1:9")
    address, workers = cluster
    for worker in workers:
        worker.kill()
        worker.wait()
    wait_for(lambda: _answers(address))
    with pytest.raises(StudyError, match="has no worker; start some with `dask worker tcp"):
        sweep(SETTINGS, Counted(), journal, scheduler=address)


def _answers(address):
    """Whether the scheduler is up, seen without Dask."""
    host, port = address.removeprefix("tcp://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0

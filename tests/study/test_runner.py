"""The runner on two small notebooks: exit status, what it says, what it skips, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from quantlib.errors import StudyError
from quantlib.study import runner
from quantlib.study.jobs import parse_parameters, plan
from quantlib.study.manifest import course


def outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.get("text", "") for cell in cells if cell.cell_type == "code" for out in cell.outputs)


def gone(pid):
    """No such process, or a dead one that nobody has collected yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_failure_is_shown_and_the_others_still_run(small_course, notebook, capsys):
    notebook(
        small_course / "notebooks/01_alpha.ipynb", "kept = 1", "answer = 41\nassert answer == 42, 'not 42'"
    )
    assert runner.main([]) == 1
    said = capsys.readouterr().out
    assert (
        "[1/2] 01 Alpha: FAILED" in said
        and "| assert answer == 42" in said
        and "AssertionError: not 42" in said
    )
    assert "[2/2] 02 Beta: ok" in said and "FAILED: 01" in said
    assert outputs(small_course / "build/study/quick/02_beta.ipynb") == "quick 8 0\n"
    page = (small_course / "build/study/quick/index.html").read_text()
    assert "What failed" in page and "not 42" in page and "02_beta.html" in page
    record = json.loads((small_course / "build/study/quick/records/02.json").read_text())
    assert record["status"] == "ok" and record["peak_mb"] > 10 and record["seconds"] > 0

    # The second call skips the one that went well and tries the failed one again, now mended.
    notebook(small_course / "notebooks/01_alpha.ipynb", "answer = 42")
    assert runner.main([]) == 0
    said = capsys.readouterr().out
    assert "02 Beta: unchanged" in said and "01 Alpha: ok" in said
    # A changed parameter runs it again, and only where the notebook has it.
    assert runner.main(["--only", "2", "-p", "BITS=4"]) == 0
    assert outputs(small_course / "build/study/quick/02_beta.ipynb") == "quick 4 0\n"
    assert "01 Alpha" not in capsys.readouterr().out


def test_time_out_stops_the_notebook_and_its_kernel(small_course, notebook, capsys):
    text = (small_course / "course.toml").read_text().replace("minutes_limit = 1", "minutes_limit = 0.3", 1)
    (small_course / "course.toml").write_text(text)
    notebook(
        small_course / "notebooks/01_alpha.ipynb",
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)",
    )
    began = time.monotonic()
    assert runner.main(["--only", "01"]) == 1
    assert time.monotonic() - began < 60
    said = capsys.readouterr().out
    assert "stopped at its limit of 18 s" in said and "| time.sleep(600)" in said
    assert gone(int((small_course / "notebooks/pid").read_text()))


def test_interrupt_keeps_what_is_finished(small_course, notebook):
    notebook(
        small_course / "notebooks/02_beta.ipynb",
        "open('started', 'w').write('x')\nimport time\ntime.sleep(600)",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "quantlib.study.runner"],
        cwd=small_course,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(os.environ, PYTHONPATH=ROOT),
    )
    deadline = time.monotonic() + 120
    while not (small_course / "notebooks/started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Finished notebooks are kept" in said and "Traceback" not in said
    assert (small_course / "build/study/quick/index.html").is_file()
    state = json.loads((small_course / "build/study/quick/.state.json").read_text())
    assert "01" in state and "02" not in state
    assert json.loads((small_course / "build/study/quick/records/01.json").read_text())["status"] == "ok"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--profile", "huge"], "There is no profile 'huge'; choose one of quick, full."),
        (["--only", "07"], "There is no notebook '07'; the course has 01, 02."),
        (["--from", "x"], "There is no notebook 'x'; the course has 01, 02."),
        (["-p", "BIT=4"], "No chosen notebook has a parameter 'BIT'; they have BITS, PROFILE, SEED."),
        (["-p", "PROFILE='full'"], "PROFILE is set by --profile, not by -p."),
        (["-p", "BITS"], "'BITS' is not NAME=VALUE, such as BITS=4."),
        (["--device", "abacus"], "There is no device 'abacus'; use cpu or cuda."),
        (["--only", "01", "--from", "02"], "No notebook is left by --only and --from together."),
    ],
)
def test_bad_arguments_get_one_sentence_before_anything_runs(small_course, capsys, arguments, sentence):
    assert runner.main(arguments) == 2
    assert capsys.readouterr().err.strip() == sentence
    assert not (small_course / "build").exists() or not list((small_course / "build").rglob("*.ipynb"))


def test_a_full_disk_gets_one_sentence(small_course, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 12e6}))
    assert runner.main([]) == 2
    assert "Only 12 MB are free" in capsys.readouterr().err


def test_a_missing_notebook_fails_by_name(small_course, capsys):
    (small_course / "notebooks/01_alpha.ipynb").unlink()
    assert runner.main(["--only", "01"]) == 1
    assert "notebooks/01_alpha.ipynb is missing" in capsys.readouterr().out


def test_plan_and_parameters(small_course, capsys):
    loaded = course()
    assert [job.notebook.number for job in plan(loaded, "quick", since="2")] == ["02"]
    assert parse_parameters(["A=4", "B=0.5", "C=mse", "D=[1, 2]", "E=None"]) == {
        "A": 4,
        "B": 0.5,
        "C": "mse",
        "D": [1, 2],
        "E": None,
    }
    job = plan(loaded, "full", ["01"], parameters={"BITS": 4})[0]
    assert job.all_parameters() == {"PROFILE": "full", "BITS": 4}
    assert job.environment()["QUANTLIB_RESULTS"] == "build/results/full-changed"
    with pytest.raises(StudyError):
        plan(loaded, "quick", parameters={"NOPE": 1})
    assert runner.main(["--list"]) == 0
    assert "01  Alpha" in capsys.readouterr().out


ROOT = str(runner.results.Path(runner.__file__).parents[2])

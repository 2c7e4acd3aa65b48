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
from quantlib.study import jobs, origin, results, runner
from quantlib.study.console import Progress
from quantlib.study.jobs import LIBRARY, Job, parse_parameters, plan
from quantlib.study.manifest import course
from quantlib.subject import checkpoints

INPUTS = Job.inputs  # before `small_course` replaces it


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
    old = small_course / "build/study/quick/01_alpha.html"
    old.parent.mkdir(parents=True)
    old.write_text("an earlier success")
    began = time.monotonic()
    assert runner.main(["--only", "01"]) == 1
    assert time.monotonic() - began < 60
    said = capsys.readouterr().out
    assert "stopped at its limit of 18 s" in said and "| time.sleep(600)" in said
    assert gone(int((small_course / "notebooks/pid").read_text()))
    assert not list((small_course / "build/study/quick").glob("01*.html"))  # nor a page of an earlier run


@pytest.mark.parametrize("ending", ["SIGINT", "SIGHUP"])  # Ctrl-C, and a terminal that is closed
def test_interrupt_keeps_what_is_finished(small_course, notebook, ending, monkeypatch):
    monkeypatch.setattr(Job, "inputs", INPUTS)  # as in the process that is started
    notebook(
        small_course / "notebooks/02_beta.ipynb",
        "import os, time\nopen('started', 'w').write(str(os.getpid()))\ntime.sleep(600)",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "quantlib.study.runner"],
        cwd=small_course,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(os.environ, PYTHONPATH=ROOT),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
    )
    deadline = time.monotonic() + 120
    while not (small_course / "notebooks/started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.2)
    process.send_signal(getattr(signal, ending))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Finished notebooks are kept" in said and "Traceback" not in said
    page = (small_course / "build/study/quick/index.html").read_text()
    assert "earlier" not in page
    assert gone(int((small_course / "notebooks/started").read_text()))
    first, second = plan(course(), "quick")
    assert first.is_done() and not second.is_done()


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


def test_a_notebook_depends_on_what_it_reads_on_the_checkpoints_and_on_the_library(small_course, monkeypatch):
    monkeypatch.setattr(Job, "inputs", INPUTS)
    monkeypatch.setattr(checkpoints, "ROOT", small_course / "checkpoints")
    toml = small_course / "course.toml"
    reads = 'reads = ["results/02_things.csv", "results/absent.csv", "resnet50"]\nwrites = ["01_things"]'
    toml.write_text(toml.read_text().replace('writes = ["01_things"]', reads))
    own = {"notebooks/01_alpha.ipynb", "course.toml", "results/02_things.csv", "checkpoints/index.json",
           "checkpoints/compressed.json"}  # fmt: skip
    for name in own - {"notebooks/01_alpha.ipynb", "course.toml"}:
        (small_course / name).parent.mkdir(exist_ok=True)
        (small_course / name).write_text("{}")
    (job,) = plan(course(), "quick", ["01"])
    found = set(job.inputs())
    assert {str(path.relative_to(small_course)) for path in found if path.is_relative_to(small_course)} == own
    library = {str(path.relative_to(LIBRARY)) for path in found if path.is_relative_to(LIBRARY)}
    assert library >= {"errors.py", "quantization/affine.py", "compression/archive.py", "study/sweep.py",
                       "study/quantlib.mplstyle", "subject/recipes/resnet50.toml"}  # fmt: skip


def test_what_decides_a_run_is_compared(small_course, monkeypatch):
    """A notebook runs again when these differ from what they were at its last good run."""

    def key(*given, **more):
        (job,) = plan(course(), *given, **more)
        return job.key()

    found = [key("quick", ["01"]), key("full", ["01"]), key("quick", ["01"], parameters={"BITS": 4}),
             key("quick", ["01"], device="cuda")]  # fmt: skip
    toml = small_course / "course.toml"
    toml.write_text(toml.read_text().replace("images_test = 16", "images_test = 17"))
    found.append(key("quick", ["01"]))
    (small_course / "library" / "code.py").write_text("x = 2")
    found.append(key("quick", ["01"]))
    monkeypatch.setattr(origin, "LIBRARIES", ("torch",))  # as if the others were not installed
    found.append(key("quick", ["01"]))
    assert len(set(found)) == 7 and key("quick", ["01"]) == found[-1]


def test_recorded_results_that_a_notebook_shows_make_it_run_again(small_course, monkeypatch):
    monkeypatch.setattr(Job, "inputs", INPUTS)
    toml, writes = small_course / "course.toml", 'writes = ["02_things"]'
    toml.write_text(toml.read_text().replace(writes, f'reads = ["results/headline.csv"]\n{writes}'))
    recorded = small_course / "results"
    recorded.mkdir()

    def keys():
        every = [job for profile in ("quick", "full") for job in plan(course(), profile)]
        return {(job.profile, job.notebook.number): job.key() for job in every}

    def changed_by(name, text):
        before = keys()
        (recorded / name).write_text(text)
        return sorted(job for job, key in keys().items() if key != before[job])

    assert changed_by("01_things.csv", "a\n1\n") == [("quick", "01")]
    both = [("full", "02"), ("quick", "02")]
    assert changed_by("claims_01.csv", "a\n1\n") == changed_by("scores_01.csv", "a\n1\n") == both
    assert changed_by("claims_02.csv", "a\n1\n") == []
    head = "name,value,low,high,n,unit,source\nx,1,,,0,,01_things\n"
    assert changed_by("headline.csv", head) == both
    assert changed_by("headline.csv", head + "y,2,,,0,,02_things\n") == []  # its own figure


def test_what_one_notebook_records_makes_a_later_one_run_too(small_course, notebook, monkeypatch, capsys):
    monkeypatch.setattr(Job, "inputs", INPUTS)
    toml, writes = small_course / "course.toml", 'writes = ["02_things"]'
    toml.write_text(toml.read_text().replace(writes, f'reads = ["results/headline.csv"]\n{writes}'))
    for verdict in ("holds", "fails"):
        body = f"from quantlib import study\nstudy.start('01').claim('first', '{verdict}', '')"
        notebook(small_course / "notebooks/01_alpha.ipynb", body)
        assert runner.main(["--profile", "full"]) == 0
        said = capsys.readouterr().out
        assert "01 Alpha: ok" in said and "02 Beta: ok" in said
    assert runner.main(["--profile", "full"]) == 0
    assert capsys.readouterr().out.count("unchanged") == 2
    notebook(small_course / "notebooks/02_beta.ipynb", "1")
    both = plan(course(), "full")
    left, all_of_it = Progress(both).left, Progress(both, force=True).left
    assert left == {"01": 0, "02": all_of_it["02"]} and min(all_of_it.values()) > 0


def test_a_run_that_was_stopped_or_overtaken_by_an_edit_is_not_taken_for_done(small_course, notebook, capsys):
    assert runner.main(["--only", "01"]) == 0
    job = plan(course(), "quick", ["01"])[0]
    assert job.is_done()
    job.record.unlink()  # what a kill leaves: the output of before, or half a new one, and no record
    assert not job.is_done()
    notebook(small_course / "notebooks/01_alpha.ipynb", "open('../library/code.py', 'a').write('y = 1')")
    assert runner.main(["--only", "01"]) == 0 and not plan(course(), "quick", ["01"])[0].is_done()
    notebook(small_course / "notebooks/01_alpha.ipynb", "1")
    assert runner.main(["--only", "01"]) == 0 and plan(course(), "quick", ["01"])[0].is_done()
    capsys.readouterr()
    assert runner.main(["--only", "01"]) == 0 and "unchanged" in capsys.readouterr().out


def test_a_full_run_that_fails_says_what_it_has_replaced(small_course, notebook, capsys):
    recorded = small_course / "results"
    recorded.mkdir()
    for name in ("01", "02"):
        (recorded / f"{name}_things.csv").write_text("kept")
    body = "open('../results/01_things.csv', 'w').write('half')", "assert 1 == 2"
    notebook(small_course / "notebooks/01_alpha.ipynb", *body)
    assert runner.main(["--only", "01", "--profile", "full"]) == 1
    said = capsys.readouterr().out
    assert "What was recorded is half replaced" in said and "`git checkout -- results/01_things.csv`" in said
    assert runner.main(["--only", "01"]) == 1  # at quick size nothing goes in there
    assert "git checkout" not in capsys.readouterr().out


def test_folders_are_the_kernels_too_and_a_scheduler_changes_no_result(small_course, monkeypatch, notebook):
    parameters = "PROFILE = None\nSCHEDULER = None\nBITS = 8"
    notebook(small_course / "notebooks/01_alpha.ipynb", "1", parameters=parameters)
    monkeypatch.setenv("QUANTLIB_DATA", "cifar")
    job = plan(course(), "full", ["01"], parameters={"SCHEDULER": "tcp://host:1"})[0]
    assert job.environment()["QUANTLIB_DATA"] == str(small_course / "cifar")
    assert "QUANTLIB_RESULTS" not in job.environment()
    both = plan(course(), "full", ["01"], parameters={"SCHEDULER": "tcp://host:1", "BITS": 4})[0]
    assert both.environment()["QUANTLIB_RESULTS"] == "build/results/full-changed"


def test_a_folder_that_cannot_be_written_gets_one_sentence(small_course, monkeypatch, capsys):
    (small_course / "build").write_text("a file in the way")
    assert runner.main([]) == 2
    assert "build/study/quick cannot be made" in capsys.readouterr().err
    (small_course / "build").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert runner.main([]) == 2
    assert "may not be written to by you" in capsys.readouterr().err


def test_a_process_that_leaves_no_record_is_said_to_have_crashed(small_course, tmp_path, monkeypatch):
    broken = tmp_path / "broken.py"
    broken.write_text("import sys\nprint('first')\nprint('no memory left')\nsys.exit(3)\n")
    monkeypatch.setattr(jobs, "EXECUTE", broken)
    (job,) = plan(course(), "quick", ["01"])
    record = job.run()
    assert record["status"] == "failed" and record["error"] == {
        "kind": "crash", "message": "its process ended with 3; no memory left",
    }  # fmt: skip
    assert json.loads(job.record.read_text()) == record


def test_a_kernel_that_dies_is_said_and_the_next_notebook_runs(small_course, notebook, capsys):
    notebook(small_course / "notebooks/01_alpha.ipynb", "import os", "os.kill(os.getpid(), 9)")
    assert runner.main([]) == 1
    said = capsys.readouterr().out
    assert "01 Alpha: FAILED" in said and "the kernel died, most often because memory ran out" in said
    assert "[2/2] 02 Beta: ok" in said and "FAILED: 01" in said


def test_the_times_of_a_whole_quick_run_are_recorded_and_no_others(small_course, capsys):
    clock = small_course / "build" / "test_seconds"
    clock.parent.mkdir(exist_ok=True)
    clock.write_text("123\n")
    loaded = course()
    for status, plain in (({"01": "ok"}, True), ({"01": "ok", "02": "unchanged"}, True),
                          ({"01": "ok", "02": "ok"}, False)):  # fmt: skip
        runner._record_time(loaded, plain, 60.7, status)
        assert "The time is not recorded" in capsys.readouterr().out
    assert not (small_course / "results" / "headline.csv").exists()
    runner._record_time(loaded, True, 60.7, {"01": "ok", "02": "ok"})
    table = results.load("headline", "full", small_course).set_index("name")
    assert table["value"].to_dict() == {"study_quick_seconds": 61, "test_seconds": 123}
    assert table.loc["study_quick_seconds", "n"] == 2  # notebooks


def test_a_full_run_without_the_data_is_refused_once(small_course, monkeypatch, capsys):
    toml = small_course / "course.toml"
    own = 'source = "slice"\nimages_test = 32'
    toml.write_text(toml.read_text().replace(own, own.replace("slice", "full")))
    monkeypatch.setattr(runner.layout, "survey", lambda root: (None, ["/x: no CIFAR-10 files"]))
    assert runner.main(["--profile", "full"]) == 2
    assert "run `make data`" in capsys.readouterr().err

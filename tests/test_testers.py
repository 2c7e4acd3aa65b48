"""The tests of notebooks are themselves tested: each must fail when what it guards is broken."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import get_sanitize_patterns

from quantlib.study import anatomy
from quantlib.study.anatomy import COMPARED

ROOT = Path(__file__).parents[1]
SANITIZER = ROOT / "notebooks" / "nbval_sanitize.cfg"


def tiny():
    """A notebook with stored outputs, one cell of which nbval compares."""
    code, output = nbformat.v4.new_code_cell, nbformat.v4.new_output
    stored = [output("stream", name="stdout", text="42\n")]
    cells = [
        code("x = 41 + 1\nprint(x)", execution_count=1, outputs=stored, metadata={"tags": [COMPARED]}),
        code("assert x == 42", execution_count=2),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def mutated(notebook):
    notebook.cells[0].outputs[0].text = "43\n"


def broken(notebook):
    notebook.cells[1].source = "assert x == 43"


def stripped(notebook):
    mutated(notebook)
    for cell in notebook.cells:
        cell.update(execution_count=None, outputs=[])


def noisy(notebook):
    notebook.cells[0].source = (
        "import sys\nfrom IPython.display import HTML, display\n"
        "print('now', file=sys.stderr)\ndisplay(HTML('<b>new</b>'))\nx = 41 + 1\nprint(x)"
    )
    output = nbformat.v4.new_output
    page = {"text/html": "<b>old</b>", "text/plain": "<IPython.core.display.HTML object>"}
    before = [output("stream", name="stderr", text="then\n"), output("display_data", data=page)]
    notebook.cells[0].outputs = [*before, *notebook.cells[0].outputs]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """What nbval, run as `make test` runs it, says of each variant: whether all its cells passed."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "plain").mkdir()
    for name, edit in {"right": None, "mutated": mutated, "broken": broken, "stripped": stripped,
                       "noisy": noisy, "plain/noisy": noisy}.items():  # fmt: skip
        notebook = tiny()
        if edit is not None:
            edit(notebook)
        nbformat.write(notebook, folder / f"{name}.ipynb")
    found = nbval(folder / "plain")
    shutil.rmtree(folder / "plain")
    shutil.copy(ROOT / "notebooks" / "conftest.py", folder)
    return {"noisy, without our conftest": found["noisy"], **nbval(folder)}


def nbval(folder):
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--rootdir", str(folder),
               "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "60", str(folder)]  # fmt: skip
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    lines = re.findall(r"^(PASSED|FAILED) (\w+)\.ipynb::", done.stdout, re.MULTILINE)
    assert lines, done.stdout + done.stderr
    return {name: all(word == "PASSED" for word, of in lines if of == name) for _, name in lines}


def test_every_sanitizer_rule_is_parsed():
    text = SANITIZER.read_text()
    written = sum(line.startswith("regex:") for line in text.splitlines())
    assert written >= 4
    assert len(get_sanitize_patterns(text)) == written == text.count("replace:") == text.count("\n[")


def test_nbval_passes_what_is_right(verdicts):
    assert verdicts["right"]


def test_nbval_fails_a_mutated_output(verdicts):
    assert not verdicts["mutated"]


def test_nbval_fails_a_broken_assert(verdicts):
    assert not verdicts["broken"]


def test_our_conftest_keeps_stderr_and_html_from_being_compared(verdicts):
    assert verdicts["noisy"] and not verdicts["noisy, without our conftest"]


def test_a_stripped_notebook_passes_nbval_and_is_caught_by_the_static_check(verdicts):
    assert verdicts["stripped"]  # nbval compares nothing where there is no count: hence the rule of `form`
    notebook = tiny()
    stripped(notebook)
    assert any("execution counts" in problem for problem in anatomy.form(notebook))


@pytest.mark.parametrize("edit, words", [
    (lambda nb: nb.cells[0].update(execution_count=7), "execution counts"),
    (lambda nb: nb.cells[0].metadata.update(papermill={"duration": 1}), "unneeded metadata"),
    (lambda nb: nb.metadata.update(widgets={}), "unneeded metadata"),
    (lambda nb: nb.metadata.kernelspec.update(name="my-env"), "kernel"),
    (lambda nb: nb.cells[0].outputs[0].update(name="stderr"), "stderr"),
    (lambda nb: nb.cells[0].outputs[0].update(text="in /home/me/quantlib"), "absolute path"),
    (lambda nb: nb.cells[1].update(source="x = 1\n" * 26), "26 lines"),
    (lambda nb: nb.cells[1].update(source="import os\nif os.environ.get('CI'):\n    pass"), "CI"),
    (lambda nb: nb.cells[1].update(id=nb.cells[0].id), "ids"),
])  # fmt: skip
def test_each_rule_of_form_notices_its_breach(edit, words):
    notebook = tiny()
    assert not list(anatomy.form(notebook))
    edit(notebook)
    assert any(words in problem for problem in anatomy.form(notebook))

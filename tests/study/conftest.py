"""A small course in a temporary folder, with notebooks made from cells of source text."""

from pathlib import Path

import nbformat
import pytest

from quantlib.study.jobs import Job

HEAD = """
title = "A small course"
[profiles.quick]
source = "slice"
images_test = 16
minutes_limit = 1
[profiles.full]
source = "slice"
images_test = 32
minutes_limit = 1
"""

ENTRY = """
[[notebooks]]
number = "{number}"
file = "{number}_{name}.ipynb"
title = "{title}"
question = "Why {name}?"
writes = ["{number}_things"]
minutes_quick = 0.5
minutes_full = 1
"""

CLAIMS = """
[[claims]]
id = "first"
text = "The first thing holds."
notebook = "01"
[[claims]]
id = "second"
text = "The second thing holds."
notebook = "02"
"""


def make_notebook(path: Path, *cells: str, parameters: str = "PROFILE = None\nSEED = 0\nBITS = 8") -> Path:
    """Write a notebook whose first code cell holds the parameters and whose others hold `cells`."""
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook.cells = [first, *(nbformat.v4.new_code_cell(source) for source in cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def notebook():
    return make_notebook


@pytest.fixture
def small_course(tmp_path, monkeypatch):
    """A course of two notebooks, `alpha` (ok) and `beta` (ok), with the working folder set to it."""
    for name in ("QUANTLIB_PROFILE", "QUANTLIB_RESULTS", "QUANTLIB_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    names = {"01": "alpha", "02": "beta"}
    entries = [ENTRY.format(number=number, name=name, title=name.title()) for number, name in names.items()]
    (tmp_path / "course.toml").write_text(HEAD + "".join(entries) + CLAIMS)
    for number, name in names.items():
        make_notebook(tmp_path / "notebooks" / f"{number}_{name}.ipynb", "print(PROFILE, BITS, SEED)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUANTLIB_ROOT", str(tmp_path))
    # Nobody's edit of the library during the test makes a notebook run again.
    library = tmp_path / "library"
    library.mkdir()
    (library / "code.py").write_text("x = 1")
    monkeypatch.setattr(Job, "inputs", lambda job: [job.course.path(job.notebook), library / "code.py"])
    return tmp_path

"""Notebooks, course.toml, figures and README agree, checked without running anything."""

import ast
import inspect
import json
import re
from importlib import import_module

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest

from quantlib.study import anatomy, notebooks, origin, readme, results
from quantlib.study.figures import FIGURES, load_all, redraw
from quantlib.study.manifest import course

COURSE = course(results.find_root(results.Path(__file__).parent))
FILES = sorted((COURSE.root / "notebooks").rglob("*.ipynb"))
FILES = [path for path in FILES if ".ipynb_checkpoints" not in path.parts]


NONE = [pytest.param(None, marks=pytest.mark.skip("no notebooks yet"))]


def name(path):
    return str(path.relative_to(COURSE.root / "notebooks")) if path else "none"


@pytest.mark.parametrize("path", FILES or NONE, ids=name)
def test_anatomy(path):
    entry = COURSE.notebook(path.name)
    content = nbformat.read(path, as_version=4)
    nbformat.validate(content)
    found = anatomy.problems(COURSE, entry, content, solutions=path.parent.name == "solutions")
    assert not found, "\n".join(found)
    assert path.stat().st_size <= notebooks.MAX_BYTES


@pytest.mark.parametrize("path", FILES or NONE, ids=name)
def test_stored_clean(path):
    stored = nbformat.read(path, as_version=4)
    again = notebooks.canonicalise(nbformat.read(path, as_version=4), COURSE.root)
    assert again == stored, f"python -m quantlib.study.notebooks clean {path.name[:2]}"


@pytest.mark.skipif(not FILES, reason="no notebooks yet")
def imported(path):
    """What a notebook imports by name from quantlib: functions and classes, not constants and modules."""
    code = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "quantlib":
            for alias in node.names:
                found = getattr(import_module(node.module), alias.name, None)
                if inspect.isfunction(found) or inspect.isclass(found):
                    yield found


@pytest.mark.parametrize("path", FILES or NONE, ids=name)
def test_what_a_notebook_uses_says_which_notebook_introduces_it(path):
    silent = {
        found.__qualname__ for found in imported(path)
        if not issubclass(found if inspect.isclass(found) else object, Exception)
        and not re.search(r"Introduced\s+in\s+notebook", inspect.getdoc(found) or "")
    }  # fmt: skip
    assert not silent


def test_every_listed_notebook_is_there_and_none_else():
    listed = {entry.file for entry in COURSE.notebooks}
    assert {path.name for path in FILES if path.parent.name == "notebooks"} == listed


def test_claims_of_written_notebooks_are_settled_in_them():
    for entry in COURSE.notebooks:
        path = COURSE.path(entry)
        if not path.is_file():
            continue
        source = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        settled = set(re.findall(r"run\.claim\(\s*[\"']([\w-]+)[\"']", source))
        assert settled == {claim.id for claim in COURSE.claims if claim.notebook == entry.number}, entry.file


def test_figures_read_recorded_experiments_and_are_drawn():
    load_all()
    written = {experiment for entry in COURSE.notebooks for experiment in entry.writes} | {"headline"}
    for figure in FIGURES.values():
        assert set(figure.reads) <= written, figure.name
        recorded = all((COURSE.root / "results" / f"{read}.csv").is_file() for read in figure.reads)
        drawn = (COURSE.root / "figures" / f"{figure.name}.png").is_file()
        assert drawn == recorded, f"{figure.name}: python -m quantlib.study.figures"
    for picture in (COURSE.root / "figures").glob("*.png"):
        assert picture.stem in FIGURES, f"no function draws figures/{picture.name}"


def test_stored_figures_show_the_recorded_results(tmp_path):
    drawn, _ = redraw(COURSE.root, into=tmp_path)
    if not drawn:
        pytest.skip("no full results are recorded yet")
    pins = (COURSE.root / "constraints.txt").read_text().split()
    pinned = f"matplotlib=={matplotlib.__version__}" in pins
    for name in drawn:
        stored = COURSE.root / "figures" / f"{name}.png"
        assert stored.is_file(), "python -m quantlib.study.figures"
        new, old = (plt.imread(path)[..., :3] for path in (tmp_path / f"{name}.png", stored))
        # Another matplotlib may shade the edges of letters differently; the pinned one draws the same pixels.
        apart = abs(new - old) if new.shape == old.shape else np.ones(1)
        same = apart.max() == 0 or (not pinned and apart.mean() < 0.004)
        assert same, f"{name}: python -m quantlib.study.figures"


RECORDED = ("04", "05", "06", "12", "13", "18")
"""Notebooks that settle their claims from the recorded tables in a quick run, too."""


@pytest.mark.parametrize("number", RECORDED)
def test_the_ledger_says_what_the_stored_notebook_says(number):
    """A claim's sentence is made from recorded tables: where its code has changed, the ledger must follow."""
    entry = next(entry for entry in COURSE.notebooks if entry.number == number)
    text = (COURSE.root / "notebooks" / entry.file).read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    streams = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]
    said = "\n".join("".join(stream) for stream in streams)
    for row in results.pd.read_csv(COURSE.root / "results" / f"claims_{number}.csv").itertuples():
        sentence = f'"{row.text}" {row.verdict}: {row.evidence}'
        assert sentence in said, f"run notebook {number} again at full size"


def test_every_result_has_its_provenance_and_its_notebook():
    written = {experiment for entry in COURSE.notebooks for experiment in entry.writes}
    for path in (COURSE.root / "results").glob("[0-9][0-9]_*.csv"):
        assert path.stem in written, f"course.toml names no notebook that writes {path.name}"
        assert path.with_suffix(".json").is_file(), f"{path.name} has no provenance"
        assert '"profile": "full"' in path.with_suffix(".json").read_text(), path.name


def test_no_result_is_of_other_weights_than_those_in_checkpoints():
    assert not origin.outdated(COURSE.root), "run these notebooks at full size again, or restore the weights"


def test_headline_is_well_formed():
    path = COURSE.root / "results" / "headline.csv"
    if not path.is_file():
        pytest.skip("results/headline.csv is not recorded yet")
    table = results.pd.read_csv(path)
    assert tuple(table.columns) == results.HEADLINE_COLUMNS
    assert table["name"].is_unique and table["value"].notna().all()
    known = table[table["low"].notna()]
    assert ((known["low"] <= known["value"]) & (known["value"] <= known["high"])).all()


def test_readme_agrees():
    path = COURSE.root / "README.md"
    text = path.read_text(encoding="utf-8")
    assert readme.BLOCK.search(text), "README.md has lost its generated blocks"
    if "generated: headline" in text and not (COURSE.root / "results" / "headline.csv").is_file():
        pytest.skip("results/headline.csv is not recorded yet")
    assert readme.fill(text, COURSE) == text, "python -m quantlib.study.readme"

"""Notebooks as files: canonical form, refreshing, headers, README blocks."""

import re

import nbformat
import pytest

from quantlib.errors import StudyError
from quantlib.study import anatomy, notebooks, readme, results
from quantlib.study.manifest import course


def noisy(root):
    """A notebook with all that must not be stored."""
    code, output = nbformat.v4.new_code_cell, nbformat.v4.new_output
    outputs = [
        output("stream", name="stdout", text="a\n"),
        output("stream", name="stdout", text=f"{root}/results/x.csv\n"),
        output("stream", name="stderr", text="warning"),
        output("display_data", data={notebooks.WIDGET: {"model_id": "1"}}),
        output("execute_result", data={"text/plain": "<f at 0x7f00deadbeef>"}, execution_count=9),
    ]  # fmt: skip
    cells = [
        nbformat.v4.new_markdown_cell("text", metadata={"papermill": {"duration": 1}}),
        code("PROFILE = None", execution_count=5, metadata={"tags": ["parameters"], "execution": {"a": "b"}}),
        code("PROFILE = 'quick'", metadata={"tags": ["injected-parameters"]}),
        code("1", execution_count=9, outputs=outputs),
    ]
    metadata = {
        "kernelspec": {"name": "mine", "display_name": "mine"},
        "widgets": {"state": {}},
        "papermill": {},
    }
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def test_canonical_form(tmp_path):
    clean = notebooks.canonicalise(noisy(tmp_path), tmp_path)
    assert (
        set(clean.metadata) == {"kernelspec", "language_info"} and clean.metadata.kernelspec.name == "python3"
    )
    assert [cell.execution_count for cell in clean.cells[1:]] == [1, 2]
    assert [cell.id for cell in clean.cells] == ["text-000", "code-001", "code-002"]
    assert clean.cells[0].metadata == {} and clean.cells[1].metadata == {"tags": ["parameters"]}
    stream, result = clean.cells[2].outputs
    assert stream.text == "a\nresults/x.csv\n"
    assert result.data == {"text/plain": "<f at 0x...>"} and result.execution_count == 2
    nbformat.validate(clean)
    assert not list(anatomy.form(clean))
    text = nbformat.writes(clean)
    assert nbformat.writes(notebooks.canonicalise(nbformat.reads(text, 4), tmp_path)) == text  # idempotent


def test_a_large_notebook_is_refused(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("x" * 400_000)])
    with pytest.raises(StudyError, match="big.ipynb would have 400 kB; the limit is 400"):
        notebooks.store(notebook, tmp_path / "big.ipynb")
    assert not (tmp_path / "big.ipynb").exists()


def test_refresh_stores_only_what_ran_to_its_end(small_course, notebook, capsys):
    good = notebook(small_course / "notebooks/01_alpha.ipynb", "import os\nprint(6 * 7, os.getcwd())")
    bad = notebook(small_course / "notebooks/02_beta.ipynb", "answer = 41", "assert answer == 42")
    before = bad.read_bytes()
    assert notebooks.main(["refresh"]) == 1
    said = capsys.readouterr()
    assert "01_alpha.ipynb:" in said.out and "stored" in said.out
    assert "02_beta.ipynb did not run to its end" in said.err and "| assert answer == 42" in said.err
    assert bad.read_bytes() == before
    cells = nbformat.read(good, as_version=4).cells
    assert cells[1].outputs[0].text == "42 notebooks\n" and [cell.execution_count for cell in cells] == [1, 2]
    assert not list(anatomy.form(nbformat.read(good, as_version=4)))


def test_an_edit_during_a_refresh_is_not_written_over(small_course, notebook, capsys):
    path = notebook(small_course / "notebooks/01_alpha.ipynb", "open('01_alpha.ipynb', 'a').write(' ')")
    before = path.read_bytes()
    assert notebooks.main(["refresh", "01"]) == 1
    assert "01_alpha.ipynb was edited while it ran" in capsys.readouterr().err
    assert path.read_bytes() == before + b" "


@pytest.mark.parametrize("action", ["clean", "sync", "check"])
def test_a_notebook_that_is_none_or_missing_has_its_sentence(small_course, capsys, action):
    path = small_course / "notebooks/01_alpha.ipynb"
    path.write_text("<<<<<<< ours\n{}\n=======\n")
    assert notebooks.main([action, "01"]) == 2
    assert "01_alpha.ipynb is no notebook that can be read" in capsys.readouterr().err
    path.unlink()
    assert notebooks.main([action, "01"]) == 2
    assert "notebooks/01_alpha.ipynb is missing; `git checkout" in capsys.readouterr().err


def test_sync_keeps_to_the_numbers_it_is_given(small_course, capsys):
    assert notebooks.main(["sync", "02"]) == 0
    assert "headers rewritten: 02_beta.ipynb" in capsys.readouterr().out
    assert notebooks.main(["sync", "77"]) == 2 and "no notebook '77'" in capsys.readouterr().err


def test_sync_writes_headers_from_the_manifest(small_course, capsys):
    loaded = course()
    assert notebooks.sync(loaded) == ["01_alpha.ipynb", "02_beta.ipynb"] and notebooks.sync(loaded) == []
    first = nbformat.read(small_course / "notebooks/01_alpha.ipynb", as_version=4)
    assert first.cells[0].source.startswith(
        "# 01 · Alpha\n\n[02 Beta →](02_beta.ipynb)\n\n**The question:** Why alpha?"
    )
    path = small_course / "course.toml"
    path.write_text(path.read_text().replace("Why alpha?", "Why not?"))
    assert notebooks.sync(course()) == ["01_alpha.ipynb"]
    again = nbformat.read(small_course / "notebooks/01_alpha.ipynb", as_version=4)
    assert "Why not?" in again.cells[0].source and len(again.cells) == len(first.cells)


def complete(loaded, entry):
    """A notebook that breaks no rule."""
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    _, after = loaded.neighbours(entry)
    cells = [
        text(anatomy.header(loaded, entry)),
        code("PROFILE = None\nSEED = 0\nDEVICE = None", metadata={"tags": ["parameters"]}),
        code('run.record("things", rows)', metadata={"tags": [anatomy.COMPARED]}),
        *(code("run.check('x', True)") for _ in range(3)),
        code("right = run.score('a', 1, 1, 1)"),
        text(
            "\n".join(f"## {name}" for name in anatomy.SECTIONS) + (f"\n[on]({after.file})" if after else "")
        ),
    ]
    return notebooks.canonicalise(nbformat.v4.new_notebook(cells=cells), loaded.root)  # fmt: skip


@pytest.mark.parametrize("edit, words", [
    (None, ""),
    (lambda nb: nb.cells[0].update(source="# 01"), "header cell differs"),
    (lambda nb: nb.cells[1].update(metadata={}), "0 cells are tagged parameters"),
    (lambda nb: nb.cells[1].update(source="PROFILE = None\nSEED = 0\nDEVICE = str(1)"), "more than literals"),
    (lambda nb: nb.cells[1].update(source="PROFILE = None\nSEED = 0"), "lacks DEVICE"),
    (lambda nb: nb.cells[2].update(source="pass"), "it records \\[\\], but course.toml says"),
    (lambda nb: nb.cells[3].update(source="pass"), "3 cells are checked"),
    (lambda nb: nb.cells[2].update(metadata={}), "no cell has the tag nbval-check-output"),
    (lambda nb: nb.cells[-1].update(source="## Next"), "no heading says 'by hand'"),
    (lambda nb: nb.cells[-1].update(source="## Next"), "does not link to 02_beta.ipynb"),
])  # fmt: skip
def test_each_rule_of_anatomy_notices_its_breach(small_course, edit, words):
    loaded = course()
    entry = loaded.notebook("01")
    notebook = complete(loaded, entry)
    for place, cell in enumerate(anatomy.code(notebook), start=1):
        cell.execution_count = place
    if edit is not None:
        edit(notebook)
    found = [problem for problem in anatomy.problems(loaded, entry, notebook) if "solutions/" not in problem]
    if edit is None:
        assert not found
    else:
        assert any(re.search(words, problem) for problem in found), found
    assert "notebooks/solutions/01_alpha.ipynb is missing" in anatomy.problems(loaded, entry, notebook)


def test_readme_blocks(small_course, capsys):
    path = small_course / "README.md"
    assert readme.main([]) == 2 and "no README.md" in capsys.readouterr().err
    blocks = "".join(f"<!-- generated: {name} -->\nstale\n<!-- end -->\n" for name in readme.BLOCKS)
    path.write_text(f"Above.\n{blocks}Below.\n")
    assert readme.main(["--check"]) == 1
    results.headline("w8a8_drop", 0.05, -0.02, 0.12, 10000, "points", "01_things", "full")
    assert readme.main([]) == 0 and readme.main(["--check"]) == 0
    text = path.read_text()
    assert "| `w8a8_drop` | 0.05 points | -0.02 to 0.12 | 10,000 | 01_things |" in text
    assert "[Alpha](notebooks/01_alpha.ipynb)" in text and "| The first thing holds. | open |" in text
    assert text.startswith("Above.\n") and text.endswith("Below.\n") and "stale" not in text
    results.headline("w8a8_drop", 0.06, -0.02, 0.12, 10000, "points", "01_things", "full")
    assert readme.main(["--check"]) == 1
    path.write_text("<!-- generated: weather -->\n<!-- end -->\n")
    assert readme.main([]) == 2 and "asks for 'weather'" in capsys.readouterr().err
    text = "<!-- generated: claims -->\n\nOurs.\n\n<!-- generated: weights -->\n<!-- end -->\n"
    path.write_text(text)
    assert readme.main([]) == 2 and "block 'claims' lacks its <!-- end -->" in capsys.readouterr().err
    assert path.read_text() == text


MORE = """
[[published]]
text = "ResNet-50, int8"
value = "0.5 points"
source = "Somebody 2020"
headline = "w8a8_drop"
[[published]]
text = "Never measured here"
value = "1 point"
source = "Nobody 2021"
headline = "absent"
"""


def test_tables_of_the_readme_by_hand(small_course):
    path = small_course / "course.toml"
    path.write_text(path.read_text() + MORE)
    results.headline("w8a8_drop", 0.054, -0.021, 0.126, 10000, "points", "01_things", "full")
    claims = "id,text,verdict,evidence\nsecond,The second thing holds.,fails,0.3 points\n"
    (small_course / "results/claims_02.csv").write_text(claims)
    loaded = course()
    assert readme.published_table(loaded, ()).splitlines()[2:] == [
        "| ResNet-50, int8 | 0.5 points | Somebody 2020 | 0.05 [-0.02, 0.13] |",
        "| Never measured here | 1 point | Nobody 2021 | not recorded yet |",
    ]
    marked = readme.published_table(loaded, ("01_things",)).splitlines()
    assert [readme.EARLIER in line for line in marked] == [False, False, True, False]
    assert readme.notebook_table(loaded).splitlines()[2:] == [
        "| 01 | [Alpha](notebooks/01_alpha.ipynb) | Why alpha? | 0.5 | 1 |",
        "| 02 | [Beta](notebooks/02_beta.ipynb) | Why beta? | 0.5 | 1 |",
        "| | all of them | | 1.0 | 2.0 |",
    ]
    assert readme.claims_table(loaded, ("02_things",), published=True).splitlines()[2:] == [
        "| The first thing holds. | open |  | we found none | 01 |",
        f"| The second thing holds. | fails{readme.EARLIER} | 0.3 points | we found none | 02 |",
    ]
    results.write_atomic(small_course / "results/01_things.csv", b"a\n1\n")
    assert readme.headline_table(loaded, ()).splitlines()[2:] == [
        "| `w8a8_drop` | 0.054 points | -0.021 to 0.126 | 10,000 | [`01_things`](results/01_things.csv) |"
    ]

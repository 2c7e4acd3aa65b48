"""Notebooks as files: stored clean, run again and stored, headed from course.toml.

`python -m quantlib.study.notebooks refresh 03` runs a notebook at quick size and stores its outputs,
`clean 03` only cleans the file, `sync` rewrites the header cells, `check` lists what the static checks find.
Without a number all notebooks are meant, solutions included.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from quantlib.errors import QuantlibError, StudyError
from quantlib.study import anatomy, results
from quantlib.study.jobs import Job, check_disk, missing
from quantlib.study.manifest import Course, Notebook, course
from quantlib.study.pictures import without_alpha

MAX_BYTES = 400_000
"""Bytes that a stored notebook may have."""
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
"""The kernel that every notebook names."""
WIDGET = "application/vnd.jupyter.widget-view+json"
"""The type of an output that only a running kernel can show."""
PICTURE = "image/png"
"""The type of a picture."""
KEPT_METADATA = ("tags", "jupyter", "slideshow")
"""What is kept of a cell's metadata."""


def canonicalise(notebook: NotebookNode, root: Path) -> NotebookNode:
    """The same notebook without what differs from run to run or from machine to machine.

    Python 3 kernel, no widget state, no timing, counts 1..n, ids from the place of the cell, no stderr, the
    folder of the course written as nothing, pictures without an alpha channel that hides nothing.
    """
    clean = nbformat.v4.new_notebook(
        metadata={"kernelspec": dict(KERNEL), "language_info": {"name": "python"}}
    )
    count = 0
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            continue
        cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k in KEPT_METADATA and v})
        if cell.cell_type == "code":
            count += 1
            ran = cell.execution_count is not None
            cell.execution_count = count if ran else None
            kept = [output for output in cell.outputs if _stays(output)]
            cell.outputs = merge_streams([_output(output, cell.execution_count, root) for output in kept])
        clean.cells.append(cell)
    for place, cell in enumerate(clean.cells):
        cell.id = _identity(cell, place)
    return clean


def merge_streams(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring stream outputs as one: where a kernel cuts them is chance."""
    merged: list[NotebookNode] = []
    for output in outputs:
        if (
            merged
            and output.output_type == "stream" == merged[-1].output_type
            and output.name == merged[-1].name
        ):
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def store(notebook: NotebookNode, path: Path) -> None:
    """Write a clean notebook; StudyError when it is larger than MAX_BYTES."""
    text = nbformat.writes(notebook, version=4, indent=1) + "\n"
    if len(text.encode()) > MAX_BYTES:
        raise StudyError(
            f"{path.name} would have {len(text.encode()) // 1000} kB; "
            f"the limit is {MAX_BYTES // 1000}: use fewer or smaller figures."
        )
    nbformat.validate(notebook)
    results.write_atomic(path, text.encode())


def clean(path: Path, root: Path) -> bool:
    """Clean one file in place; whether anything changed."""
    before = path.read_bytes()
    store(canonicalise(read(path), root), path)
    return path.read_bytes() != before


def refresh(loaded: Course, path: Path) -> str:
    """Run a notebook at quick size and store its outputs; what to say about it.

    The file is only rewritten when every cell ran. StudyError shows the cell that did not.
    """
    notebook = _listed(loaded, path)
    job = Job(loaded, notebook, "quick", "cpu", {}, frozenset())
    output = loaded.root / "build" / "refresh" / path.name
    check_disk(output.parent)
    before = path.read_bytes()
    record = job.run(path, output, output.with_suffix(".json"))
    if record["status"] != "ok":
        source = "\n".join(f"    | {line}" for line in str(record["error"].get("source", "")).splitlines())
        raise StudyError(
            f"{path.name} did not run to its end and is left as it was.\n{source}\n"
            f"    {record['error']['message']}"
        )
    if path.read_bytes() != before:
        raise StudyError(f"{path.name} was edited while it ran, and is left as it is; refresh it once more.")
    store(canonicalise(read(output), loaded.root), path)
    budget = 60 * notebook.minutes["quick"]
    peak = f", peak {record['peak_mb'] / 1000:.1f} GB" if record["peak_mb"] else ""
    return f"{path.name}: {record['seconds']:.0f} s of {budget:.0f} s{peak}, stored."


def sync(loaded: Course, numbers: Sequence[str] = ()) -> list[str]:
    """Rewrite the header cell of these notebooks and of their solutions; the names of those that changed."""
    changed = []
    for path in paths(loaded, numbers):
        entry, notebook = _listed(loaded, path), read(path)
        solutions = path.parent.name == "solutions"
        header = anatomy.solutions_header(entry) if solutions else anatomy.header(loaded, entry)
        first = notebook.cells[0] if notebook.cells else None
        if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
            notebook.cells.insert(0, nbformat.v4.new_markdown_cell(header))
        elif first.source == header:
            continue
        else:
            first.source = header
        store(canonicalise(notebook, loaded.root), path)
        changed.append(str(path.relative_to(loaded.root / "notebooks")))
    return changed


def paths(loaded: Course, numbers: Sequence[str] = ()) -> list[Path]:
    """The notebook files of these numbers (default all), each followed by its solutions."""
    chosen = [loaded.notebook(number) for number in numbers] or list(loaded.notebooks)
    folder = loaded.root / "notebooks"
    for entry in chosen if numbers else ():
        if not (folder / entry.file).is_file():
            raise StudyError(missing(entry))
    every = [path for entry in chosen for path in (folder / entry.file, folder / "solutions" / entry.file)]
    return [path for path in every if path.is_file()]


def read(path: Path) -> NotebookNode:
    """A notebook from its file; StudyError when it is none, as after a merge that left its marks."""
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError, KeyError) as error:
        first = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise StudyError(f"{path.name} is no notebook that can be read ({first}); restore it.") from error


def _listed(loaded: Course, path: Path) -> Notebook:
    return loaded.notebook(path.name)


def _stays(output: NotebookNode) -> bool:
    """Streams to stderr and empty displays of widgets are dropped."""
    if output.output_type == "stream":
        return bool(output.name != "stderr")
    return set(output.get("data", {"": 1})) != {WIDGET}


def _output(output: NotebookNode, count: int | None, root: Path) -> NotebookNode:
    if "execution_count" in output:
        output.execution_count = count
    output.metadata = output.get("metadata", NotebookNode())
    if output.output_type == "stream":
        del output["metadata"]
        output.text = without_paths(output.text, root)
        return output
    data = output.get("data", {})
    data.pop(WIDGET, None)
    if PICTURE in data:
        data[PICTURE] = without_alpha(data[PICTURE])
    for kind in [kind for kind in data if kind.startswith("text/")]:
        data[kind] = without_paths(data[kind], root)
    if output.output_type == "error":
        del output["metadata"]
    else:
        output.metadata = NotebookNode()
    return output


def without_paths(text: str, root: Path) -> str:
    """Text in which the course's own folder is left out and addresses of objects are equal."""
    text = text.replace(f"{root}{os.sep}", "").replace(str(root), ".")
    return re.sub(r"\bat 0x[0-9a-f]{6,}", "at 0x...", text)


def _identity(cell: NotebookNode, place: int) -> str:
    """The id of a cell: its kind and its place, so that running it again changes nothing."""
    return f"{'text' if cell.cell_type == 'markdown' else cell.cell_type}-{place:03d}"


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m quantlib.study.notebooks", description="Keep notebooks clean."
    )
    made.add_argument("action", choices=("refresh", "clean", "sync", "check"))
    made.add_argument("numbers", nargs="*", metavar="NN", help="notebooks, all when left out")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when all went well."""
    options = _parser().parse_args(arguments)
    try:
        loaded = course()
        return {"refresh": _refresh, "clean": _clean, "sync": _sync, "check": _check}[options.action](
            loaded, options.numbers
        )
    except QuantlibError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; no notebook was changed by the run that was stopped.")
        return 130


def _refresh(loaded: Course, numbers: Sequence[str]) -> int:
    failed = 0
    for path in paths(loaded, numbers):
        try:
            print(refresh(loaded, path), flush=True)
        except StudyError as error:
            failed += 1
            print(error, file=sys.stderr)
    return 1 if failed else 0


def _clean(loaded: Course, numbers: Sequence[str]) -> int:
    for path in paths(loaded, numbers):
        print(f"{path.name}: {'cleaned' if clean(path, loaded.root) else 'clean'}")
    return 0


def _sync(loaded: Course, numbers: Sequence[str]) -> int:
    print(f"headers rewritten: {', '.join(sync(loaded, numbers)) or 'none, all agree'}")
    return 0


def _check(loaded: Course, numbers: Sequence[str]) -> int:
    found: list[str] = []
    for path in paths(loaded, numbers):
        notebook = read(path)
        solved = path.parent.name == "solutions"
        problems = anatomy.problems(loaded, _listed(loaded, path), notebook, solutions=solved)
        found += [f"{path.relative_to(loaded.root)}: {problem}" for problem in problems]
    print("\n".join(found) or "nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

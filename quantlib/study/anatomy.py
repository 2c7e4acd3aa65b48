"""What a notebook of the course must have, checked without running it."""

import ast
import re
from collections.abc import Iterator

from nbformat import NotebookNode

from quantlib.study.manifest import Course, Notebook

SECTIONS = {
    "by hand": r"by hand",
    "predict": r"predict",
    "on the network": r"on the network",
    "what this does not show": r"what this does not show",
    "summary": r"summary",
    "exercises": r"exercises",
    "next": r"next",
}
"""Section and what its heading must contain; course.toml's `omits` frees a notebook from some of them."""
PARAMETERS = ("PROFILE", "SEED", "DEVICE")
"""What the parameters cell must set."""
MAX_LINES = 25
"""Lines that a code cell may have."""
CHECKED_CELLS = 4
"""Cells with a check that a notebook needs."""
COMPARED = "nbval-check-output"
"""The tag of a cell whose stored output nbval compares with a new one."""
CHECK = re.compile(r"^\s*(assert\b|(\w+ = )?\w+\.(score|check)\()|\btesting\.assert_", re.MULTILINE)
"""What a check looks like."""
ABSOLUTE = re.compile(r"(?<![\w.:/~])/(?:home|root|tmp|work|Users|mnt|var|opt|private)/\w|\b[A-Z]:\\\\?\w")
"""What a path of somebody's machine looks like."""


def header(course: Course, notebook: Notebook) -> str:
    """The first cell: title, previous and next, the question, minutes, what it reads and writes."""
    before, after = course.neighbours(notebook)
    links = [
        f"[← {before.number} {before.title}]({before.file})" if before else "",
        f"[{after.number} {after.title} →]({after.file})" if after else "",
    ]
    minutes = ", ".join(f"{number:g} min {profile}" for profile, number in notebook.minutes.items())
    reads = ", ".join(f"`{name}`" for name in notebook.reads) or "nothing"
    writes = ", ".join(f"`results/{name}.csv`" for name in notebook.writes) or "nothing"
    return "\n\n".join(
        part
        for part in (
            f"# {notebook.number} · {notebook.title}",
            " · ".join(link for link in links if link),
            f"**The question:** {notebook.question}",
            f"On two cores: {minutes}. Reads {reads}; writes {writes}.",
        )
        if part
    )


def solutions_header(notebook: Notebook) -> str:
    """The first cell of a notebook's solutions."""
    return (
        f"# {notebook.number} · {notebook.title}: solutions\n\nWorked answers to the exercises of "
        f"[{notebook.number} {notebook.title}](../{notebook.file}). Try them first."
    )


def problems(course: Course, notebook: Notebook, content: NotebookNode, solutions: bool = False) -> list[str]:
    """Every rule that the notebook breaks, a sentence each; solutions keep those of header and form."""
    wanted = solutions_header(notebook) if solutions else header(course, notebook)
    found = [*form(content)]
    if not content.cells or content.cells[0].source != wanted:
        found.append("the header cell differs from course.toml: `python -m quantlib.study.notebooks sync`")
    if solutions:
        return found
    found += [
        *opening(content),
        *sections(notebook, content),
        *closing(course, notebook, content),
    ]
    found += [*checks(content), *agreement(notebook, content)]
    if (
        not (course.root / "notebooks" / "solutions" / notebook.file).is_file()
        and "exercises" not in notebook.omits
    ):
        found.append(f"notebooks/solutions/{notebook.file} is missing")
    return found


def form(content: NotebookNode) -> Iterator[str]:
    """Rules of the file: counts, kernel, metadata, ids, stderr, paths, length of cells."""
    counts = [cell.execution_count for cell in code(content)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}, not 1..{len(counts)}: refresh it"
    if content.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"
    if set(content.metadata) - {"kernelspec", "language_info"}:
        yield f"unneeded metadata {sorted(set(content.metadata) - {'kernelspec', 'language_info'})}: clean it"
    identities = [cell.get("id") for cell in content.cells]
    if None in identities or len(set(identities)) != len(identities):
        yield "cell ids are missing or not unique: clean it"
    for place, cell in enumerate(content.cells):
        yield from _cell(place, cell)


def _cell(place: int, cell: NotebookNode) -> Iterator[str]:
    if set(cell.metadata) - {"tags", "jupyter", "slideshow"}:
        yield f"cell {place} has unneeded metadata {sorted(cell.metadata)}: clean it"
    texts = [cell.source]
    if cell.cell_type == "code":
        if len(cell.source.splitlines()) > MAX_LINES:
            yield f"cell {place} has {len(cell.source.splitlines())} lines, more than {MAX_LINES}"
        if re.search(r"\bif\b.*(\bCI\b|['\"]CI['\"])", cell.source):
            yield f"cell {place} behaves differently under CI"
        for output in cell.outputs:
            if output.get("name") == "stderr":
                yield f"cell {place} stores stderr: refresh it"
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
                yield f"cell {place} stores an error"
            data = output.get("data", {})
            texts += [output.get("text", ""), *(str(data[kind]) for kind in data if kind.startswith("text/"))]
    for text in texts:
        path = ABSOLUTE.search(text)
        if path:
            yield f"cell {place} shows an absolute path, {path.group()}..."


def opening(content: NotebookNode) -> Iterator[str]:
    """Rules of the parameters cell."""
    tagged = [cell for cell in code(content) if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        yield f"{len(tagged)} cells are tagged parameters, not one"
        return
    if tagged[0] is not code(content)[0]:
        yield "the parameters cell is not the first code cell"
    names = []
    for line in ast.parse(tagged[0].source).body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        value = getattr(line, "value", None)
        if not isinstance(target, ast.Name) or value is None or not _literal(value):
            yield f"the parameters cell holds more than literals: {ast.unparse(line)}"
            continue
        names.append(target.id)
    missing = [name for name in PARAMETERS if name not in names]
    if missing:
        yield f"the parameters cell lacks {', '.join(missing)}"


def sections(notebook: Notebook, content: NotebookNode) -> Iterator[str]:
    """Rules of the anatomy: every section of SECTIONS has its heading."""
    headings = [
        line.lower()
        for cell in content.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#")
    ]
    for name, pattern in SECTIONS.items():
        if name not in notebook.omits and not any(re.search(pattern, heading) for heading in headings):
            yield f"no heading says {name!r}"


def closing(course: Course, notebook: Notebook, content: NotebookNode) -> Iterator[str]:
    """The last cell leads to the next notebook, by a link, where there is one."""
    _, after = course.neighbours(notebook)
    last = content.cells[-1].source if content.cells else ""
    if after is not None and f"({after.file})" not in last:
        yield f"the last cell does not link to {after.file}"


def checks(content: NotebookNode) -> Iterator[str]:
    """At least CHECKED_CELLS cells hold an assert, run.check or run.score; what is by hand is compared."""
    checked = sum(bool(CHECK.search(cell.source)) for cell in code(content))
    if checked < CHECKED_CELLS:
        yield f"{checked} cells are checked (assert, run.check, run.score), fewer than {CHECKED_CELLS}"
    if not any(COMPARED in cell.metadata.get("tags", []) for cell in code(content)):
        yield f"no cell has the tag {COMPARED}; give it to those by hand, which print the same everywhere"


def agreement(notebook: Notebook, content: NotebookNode) -> Iterator[str]:
    """What the notebook records is what course.toml says that it writes."""
    recorded = set()
    for cell in code(content):
        for name in re.findall(r"\brun\.(?:record|adopt)\(\s*[\"']([\w-]+)[\"']", cell.source):
            recorded.add(f"{notebook.number}_{name}")
    if recorded != set(notebook.writes):
        yield f"it records {sorted(recorded)}, but course.toml says writes = {sorted(notebook.writes)}"


def code(content: NotebookNode) -> list[NotebookNode]:
    """The code cells."""
    return [cell for cell in content.cells if cell.cell_type == "code"]


def _literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True

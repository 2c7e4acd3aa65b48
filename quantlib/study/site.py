"""`python -m quantlib.study.site`: the course as a web site, from executed notebooks and docstrings.

Sphinx wants all pages under one folder, so they are gathered in build/site-sources first: docs/, notebooks/
with their solutions, the figures, the recorded tables, and one page for each module of quantlib.
"""

import argparse
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import quantlib
from quantlib.errors import QuantlibError, StudyError
from quantlib.study.manifest import Course, course
from quantlib.study.readme import fill

FOLDER = Path(quantlib.__file__).parent
"""The folder of the library."""
FLOORS = {
    "subject": "the network, its images, its training",
    "quantization": "integers instead of floats",
    "compression": "fewer and shorter weights",
    "study": "results, figures, the runner",
}
"""The packages of the library, lowest first, and what each is for."""


def gather(loaded: Course, target: Path) -> Path:
    """Copy and write all pages of the site into `target`, which is emptied first; `target`."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(loaded.root / "docs", target)
    notebooks = [*(loaded.root / "notebooks").glob("*.ipynb"), *(loaded.root / "notebooks").glob("*/*.ipynb")]
    others = [*(loaded.root / "figures").glob("*.png"), *(loaded.root / "results").glob("*.csv")]
    for path in [*notebooks, *others]:
        copy = target / path.relative_to(loaded.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    for path in [*target.glob("*.md"), *target.glob("notebooks/*.ipynb")]:  # docs/ is the top of the site
        text = path.read_text(encoding="utf-8")
        moved = text.replace("](../docs/", "](../").replace("](../notebooks/", "](notebooks/")
        if moved != text:
            path.write_text(moved, encoding="utf-8")
    index = target / "index.md"
    index.write_text(fill(index.read_text(encoding="utf-8"), loaded) + contents(loaded), encoding="utf-8")
    (target / "api").mkdir()
    for name, text in api_pages():
        (target / "api" / f"{name}.md").write_text(text, encoding="utf-8")
    return target


def contents(loaded: Course) -> str:
    """The tables of contents that make the side bar, in the course's order."""
    pages = [f"notebooks/{notebook.stem}" for notebook in loaded.notebooks]
    solutions = [f"notebooks/solutions/{notebook.stem}" for notebook in loaded.notebooks]
    solutions = [page for page in solutions if (loaded.root / f"{page}.ipynb").is_file()]
    parts = {
        "Use it": ["your_own_network"],
        "Course": pages,
        "Solutions": solutions,
        "Library": [f"api/{page}" for page in ("quantlib", *FLOORS)],
    }
    return "".join(_toctree(caption, entries) for caption, entries in parts.items())


def _toctree(caption: str, entries: Sequence[str]) -> str:
    lines = "\n".join(entries)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def api_pages() -> Iterator[tuple[str, str]]:
    """Name and text of the reference's pages: the front door, one for each floor, one for each module."""
    modules = [found.name for found in pkgutil.iter_modules([str(FOLDER)]) if found.name not in FLOORS]
    yield "quantlib", front_page([f"quantlib.{name}" for name in modules])
    yield from ((f"quantlib.{name}", _module_page(f"quantlib.{name}")) for name in modules)
    for floor, what in FLOORS.items():
        prefix = f"quantlib.{floor}."
        names = [found.name for found in pkgutil.walk_packages([str(FOLDER / floor)], prefix)]
        names = [name for name in names if not name.rpartition(".")[2].startswith("_")]
        for name in names:
            yield name, _module_page(name)
        listed = "\n".join(names)
        yield floor, f"# {floor}: {what}\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n"


def _module_page(name: str) -> str:
    return f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"


def front_page(modules: Sequence[str]) -> str:
    """What `from quantlib import` gives, each with its first sentence and its page; the floorless modules."""
    lines = []
    for name in quantlib.__all__:
        found = getattr(quantlib, name)
        sentence = (found.__doc__ or "").strip().splitlines()[0]
        lines.append(f"- [`{name}`]({found.__module__}.md): {sentence}")
    listed, names = "\n".join(lines), "\n".join(modules)
    return (
        "# quantlib: what you import first\n\n"
        f"All of `from quantlib import ...`; the three verbs are prepare, calibrate, convert.\n\n{listed}\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{names}\n```\n"
    )


def docstring(lines: list[str]) -> None:
    """Make reStructuredText of a docstring of ours, in place: indented lines are literal, the rest plain."""
    result: list[str] = []
    for block in re.split(r"\n\s*\n", "\n".join(lines).rstrip()):
        first = block.splitlines()[0] if block else ""
        if first.startswith(" ") or first.startswith(">>>"):
            result += ["::", "", *(f"    {line}" for line in block.splitlines()), ""]
        else:
            plain = re.sub(r"([\\*|_])", r"\\\1", block)
            named = re.sub(r"`([^`]*)`", lambda m: "``" + m[1].replace("\\", "") + "``", plain)
            result += [*named.splitlines(), ""]
    lines[:] = result


def build(loaded: Course, output: Path) -> Path:
    """Make the site; the path of its first page. Raises StudyError when Sphinx is missing or complains."""
    if not (loaded.root / "docs" / "conf.py").is_file():
        raise StudyError("The site's sources, docs/, are not here; run from a clone of the repository.")
    # In build/ wherever the pages go: this folder is emptied.
    sources = gather(loaded, loaded.root / "build" / "site-sources")
    command = [sys.executable, "-m", "sphinx", "-q", "--fail-on-warning", "--keep-going", "-b", "html"]
    done = subprocess.run([*command, str(sources), str(output)], cwd=loaded.root, check=False)
    if done.returncode:
        raise StudyError("Sphinx stopped: see its words above; it comes with pip install -e '.[site]'.")
    return output / "index.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the site and say where it is; 0 when it is there."""
    made = argparse.ArgumentParser(prog="python -m quantlib.study.site", description="Build the web site.")
    made.add_argument("--output", type=Path, help="folder (default build/site)")
    options = made.parse_args(arguments)
    try:
        loaded = course()
        page = build(loaded, (options.output or loaded.root / "build" / "site").resolve())
    except QuantlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"The site is built: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The site: docstrings become pages without warnings, a browser opens each; the guide's code runs."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pytest

import quantlib
from quantlib.study import site
from quantlib.study.manifest import course

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "your_own_network.md"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROKEN = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def made_of(text):
    lines = text.splitlines()
    site.docstring(lines)
    return "\n".join(lines).rstrip()


def test_docstrings_become_restructured_text():
    assert made_of("One |x| of a_b.") == r"One \|x\| of a\_b."
    assert made_of("`zero_point` and `a * b`.") == "``zero_point`` and ``a * b``."
    assert made_of("Say:\n\n    y = a * |x|\n\nDone.") == "Say:\n\n::\n\n        y = a * |x|\n\nDone."
    assert made_of(">>> f(1)\n2") == "::\n\n    >>> f(1)\n    2"
    assert made_of("") == ""


def test_every_module_and_notebook_has_its_page(tmp_path):
    loaded = course(ROOT)
    sources = site.gather(loaded, tmp_path / "sources")
    pages = {path.stem for path in (sources / "api").glob("*.md")}
    for path in (ROOT / "quantlib").rglob("*.py"):
        floors = path.relative_to(ROOT).with_suffix("").parts
        if not path.name.startswith("_"):
            assert ".".join(floors) in pages
    front = (sources / "api" / "quantlib.md").read_text()
    for name in quantlib.__all__:
        page = re.search(rf"^- \[`{name}`\]\((.*)\.md\): .+\.$", front, re.MULTILINE)[1]
        assert page in pages and hasattr(import_module(page), name)
    index = (sources / "index.md").read_text()
    for notebook in loaded.notebooks:
        assert (sources / "notebooks" / notebook.file).is_file()
        assert f"\nnotebooks/{notebook.stem}\n" in index
    assert "generated: " in index and all(claim.text in index for claim in loaded.claims)
    (sources / "left_over.md").write_text("# Of an earlier build")
    site.gather(loaded, tmp_path / "sources")
    assert not (sources / "left_over.md").exists()


def undocumented(path):
    """Public functions, classes, methods and constants of a file that the reference would leave out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))
    for holder in [tree, *classes]:
        for node, after in zip(holder.body, [*holder.body[1:], None], strict=True):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                if not node.name.startswith("_") and not ast.get_docstring(node):
                    yield node.name
            elif isinstance(node, ast.Assign | ast.AnnAssign) and holder is tree:
                text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)
                         and isinstance(name.ctx, ast.Store) and not name.id.startswith("_")}  # fmt: skip
                yield from () if text or "TypeVar(" in ast.unparse(node) else names


LEFT = {"DISTRIBUTIONS", "Array", "Values"}  # in files that key what long runs keep


def dead_links(folder, paths):
    """Relative links of pages and notebooks that lead nowhere."""
    for path in paths:
        text = path.read_text()
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # networks["mixed"](x) is no link
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
            if not (path.parent / link).exists() and not link.startswith(("data:", "attachment:")):
                yield f"{path.relative_to(folder)}: {link}"


def test_links_lead_somewhere_in_the_repository_and_on_the_site(tmp_path):
    notebooks = [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "notebooks/solutions").glob("*.ipynb")]
    assert not list(dead_links(ROOT, [*notebooks, GUIDE, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]))
    sources = site.gather(course(ROOT), tmp_path / "sources")
    pages = [*sources.glob("*.md"), *sources.glob("notebooks/*.ipynb"), *sources.glob("notebooks/*/*.ipynb")]
    assert not list(dead_links(sources, pages))


def test_every_public_name_is_documented():
    found = {path.name: set(undocumented(path)) - LEFT for path in (ROOT / "quantlib").rglob("*.py")}
    assert {name: names for name, names in found.items() if names} == {}


def test_one_sentence_where_there_are_no_sources(tmp_path, capsys, monkeypatch):
    shutil.copyfile(ROOT / "course.toml", tmp_path / "course.toml")
    monkeypatch.setenv("QUANTLIB_ROOT", str(tmp_path))
    assert site.main([]) == 1
    assert "run from a clone" in capsys.readouterr().err


def test_the_guide_runs_as_written(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 8
    script = tmp_path / "guide.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "QUANTLIB_ROOT": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("[]\n") and "\nTrue\n" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} >= {"mine.safetensors", "mine.onnx", "mine.qldc"}
    assert float(re.search(r"([\d.]+) times smaller", done.stdout)[1]) > 7
    assert re.search(r"^True [\d.]+ dB$", done.stdout, re.MULTILINE)  # what was unpacked
    decibels = dict(re.findall(r"^(\w[\w ]*?) +(-?[\d.]+) dB$", done.stdout, re.MULTILINE))
    assert all(float(decibels[kind]) > 20 for kind in ("simulated", "mixed", "integer", "in ONNX Runtime"))
    assert float(decibels["weights of 4 bits"]) < float(decibels["simulated"])


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The whole site, built without a warning and served on this machine."""
    pytest.importorskip("myst_nb", reason="the site's extra is not installed: pip install -e '.[site]'")
    folder = tmp_path_factory.mktemp("site") / "html"
    site.build(course(ROOT), folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not BROWSER:
        pytest.skip("there is no Chromium here")
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield opened
        opened.close()


def opened(browser, url, width=1280):
    """A page that has loaded, and everything it complains about from then on."""
    page, complaints = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    # Aborted is what we leave behind by going on to the next page; a missing file is a console error as well.
    page.on("requestfailed", lambda r: complaints.append(r.url) if r.failure != "net::ERR_ABORTED" else None)
    page.goto(url)
    return page, complaints


def test_every_page_opens_without_a_complaint(browser, address):
    folder, start = address
    page, complaints = opened(browser, f"{start}/index.html")
    for path in sorted(folder.rglob("*.html")):
        page.goto(f"{start}/{path.relative_to(folder)}")
        broken = page.evaluate(
            "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
        )
        assert not complaints and not broken, (path.name, complaints, broken)
        if path.name != "search.html":  # Sphinx's own, empty until something is asked; tested below
            assert page.locator("h1").count() >= 1, path.name
    page.close()


def test_a_notebook_shows_its_figures_and_formulas_and_leads_on(browser, address):
    _, start = address
    page, _ = opened(browser, f"{start}/index.html")
    page.get_by_role("link", name="Folding batch norm and ReLU").first.click()
    page.wait_for_url("**/06_bn_relu_folding.html")
    assert page.locator("article img").count() >= 3
    page.wait_for_selector("mjx-container")
    page.get_by_role("link", name="Mixed FP32 and int8").first.click()
    page.wait_for_url("**/07_mixed_fp32_int8.html")
    page.close()


def test_search_finds_a_function(browser, address):
    _, start = address
    page, _ = opened(browser, f"{start}/search.html?q=quantize_multiplier")
    page.wait_for_selector("ul.search li a")
    assert "requantize" in " ".join(page.locator("ul.search li a").all_inner_texts())
    page.close()


def test_a_narrow_screen_does_not_scroll_sideways(browser, address):
    _, start = address
    for name in ("index.html", "notebooks/08_pure_int8_inference.html", "your_own_network.html"):
        page, _ = opened(browser, f"{start}/{name}", width=390)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        page.close()

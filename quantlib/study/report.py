"""The page that a run leaves: status, time against budget, slowest cells, headline figures, environment."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from quantlib.study import origin, results
from quantlib.study.manifest import Course, Notebook
from quantlib.study.process import read_record
from quantlib.study.scoreboard import ledger

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.ok { color: #00704f } .failed { color: #b34700; font-weight: bold } .dim { color: #777 }
pre { background: #f5f5f5; padding: .6rem; overflow-x: auto; font-size: 13px }
code { font-size: 13px }
"""
"""The style sheet of the page."""


def write(course: Course, profile: str, seconds: float, status: Mapping[str, str]) -> Path:
    """Write build/study/<profile>/index.html from the records of the last runs; its path."""
    folder = course.root / "build" / "study" / profile
    records = {nb.number: read_record(folder / "records" / f"{nb.number}.json") for nb in course.notebooks}
    parts = [
        f"<p>Profile <b>{escape(profile)}</b>, {seconds:.0f} s in all.</p>",
        notebooks(course, folder, profile, records, status),
        failures(course, records),
        headlines(course.root, profile),
        claims(course, profile),
        environment(),
    ]
    page = folder / "index.html"
    results.write_atomic(page, _page(course.title, "\n".join(parts)).encode())
    return page


def notebooks(
    course: Course,
    folder: Path,
    profile: str,
    records: Mapping[str, dict[str, Any] | None],
    status: Mapping[str, str],
) -> str:
    """The table of notebooks."""
    rows = []
    for nb in course.notebooks:
        record = records[nb.number]
        words = status.get(nb.number) or (record["status"] + ", earlier" if record else "not run")
        rows.append([_title(nb, folder), _status(words), *_times(nb, profile, record), _slowest(record)])
    return "<h2>Notebooks</h2>" + table(
        ["notebook", "status", "seconds", "budget", "peak memory", "slowest cells"], rows, numbers=(2, 3, 4)
    )


def failures(course: Course, records: Mapping[str, dict[str, Any] | None]) -> str:
    """Every failed cell with its error; empty when all went well."""
    parts = []
    for nb in course.notebooks:
        error = (records[nb.number] or {}).get("error")
        if error:
            source = f"<pre>{escape(error['source'])}</pre>" if error.get("source") else ""
            parts.append(f"<h3>{nb.number} {escape(nb.title)}</h3>{source}<p>{escape(error['message'])}</p>")
    return "<h2>What failed</h2>" + "".join(parts) if parts else ""


def headlines(root: Path, profile: str) -> str:
    """The headline figures of this profile beside the recorded full ones."""
    frames = {
        name: _read(results.folder(name, root) / "headline.csv") for name in dict.fromkeys([profile, "full"])
    }
    names = list(
        dict.fromkeys(name for frame in frames.values() if frame is not None for name in frame["name"])
    )
    if not names:
        return ""
    rows = [[escape(name), *(_figure(frame, name) for frame in frames.values())] for name in names]
    return "<h2>Headline figures</h2>" + table(["name", *(f"{p} run" for p in frames)], rows)


def claims(course: Course, profile: str) -> str:
    """The claims settled by this profile's runs."""
    lines = ledger(course, profile)
    columns = ["text", "verdict", "evidence", "notebook"]
    settled = lines.loc[lines["verdict"] != "open", columns] if len(lines) else lines
    if settled.empty:
        return ""
    rows = [[escape(str(cell)) for cell in line] for line in settled.itertuples(index=False)]
    return "<h2>Claims</h2>" + table(["claim", "verdict", "evidence", "notebook"], rows)


def environment() -> str:
    """The machine and the library versions."""
    facts = origin.environment()
    rows = [
        [escape(str(key)), escape(str(value))] for group in facts.values() for key, value in group.items()
    ]
    return "<h2>Environment</h2>" + table(["", ""], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """An HTML table of cells that are already HTML; `numbers` are the columns set to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="number"' if place in numbers else "" for place in range(len(cells))]
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))

    body = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in rows)
    return f"<table><tr>{line(head, 'th')}</tr>{body}</table>"


def _title(nb: Notebook, folder: Path) -> str:
    text = f"{nb.number} {escape(nb.title)}"
    for name in (f"{nb.stem}.html", nb.file):
        if (folder / name).is_file():
            return f'<a href="{name}">{text}</a>'
    return text


def _status(words: str) -> str:
    kind = (
        "failed" if words.startswith("failed") else "ok" if words.startswith(("ok", "unchanged")) else "dim"
    )
    return f'<span class="{kind}">{escape(words)}</span>'


def _times(nb: Notebook, profile: str, record: dict[str, Any] | None) -> list[str]:
    budget = 60 * nb.minutes[profile]
    if record is None:
        return ["", f"{budget:.0f}", ""]
    kind = "failed" if record["seconds"] > budget else ""
    peak = f"{record['peak_mb'] / 1000:.2f} GB" if record.get("peak_mb") else ""
    return [f'<span class="{kind}">{record["seconds"]:.0f}</span>', f"{budget:.0f}", peak]


def _slowest(record: dict[str, Any] | None) -> str:
    cells = (record or {}).get("slowest", [])
    return "<br>".join(f"{cell['seconds']:.1f} s <code>{escape(cell['line'])}</code>" for cell in cells)


def _figure(frame: pd.DataFrame | None, name: str) -> str:
    found = frame[frame["name"] == name] if frame is not None else None
    if found is None or found.empty:
        return '<span class="dim">not recorded</span>'
    entry = found.iloc[-1]
    interval = f" [{entry['low']:.4g}, {entry['high']:.4g}]" if pd.notna(entry["low"]) else ""
    unit = "" if pd.isna(entry["unit"]) else f" {entry['unit']}"
    count = f", n = {int(entry['n']):,}" if entry["n"] else ""
    return escape(f"{entry['value']:.4g}{interval}{unit}{count}")


def _read(path: Path) -> pd.DataFrame | None:
    return results.read_table(path) if path.is_file() else None


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{escape(title)}</h1>{body}</html>\n"
    )

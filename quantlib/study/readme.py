"""`python -m quantlib.study.readme`: fill the generated blocks of README.md from course.toml and results/.

A block is everything between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is one of BLOCKS.
"""

import argparse
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pandas as pd

from quantlib.compression.compressed import compressed_files
from quantlib.errors import QuantlibError, StudyError
from quantlib.study.manifest import Course, course
from quantlib.study.origin import outdated, provenance_of
from quantlib.study.results import HEADLINE_COLUMNS, read_table, write_atomic
from quantlib.study.scoreboard import ledger
from quantlib.subject.checkpoints import checkpoint_index

BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
"""A generated block, its name and its content."""
EARLIER = " (earlier weights)"
"""What marks a figure that was measured on other weights than checkpoints/ holds now."""
TRAINED = "fp32_training_hours"
"""The headline figure of the training's length."""
RUNTIMES = ("torch", "onnxruntime", "openvino")
"""The runtimes whose versions stand beside the speeds."""
Old = Collection[str]
"""The experiments that `outdated` names: every block gets them, the table of notebooks needs none."""


def headline_table(loaded: Course, old: Old) -> str:
    """The headline figures with interval and n, in the order of results/headline.csv."""
    known = _headlines(loaded)
    if known.empty:
        return "Nothing is recorded yet; `make study PROFILE=full` makes it."
    lines = ["| figure | value | interval | n | from |", "|---|---:|---:|---:|---|"]
    for entry in known.to_dict("records"):
        interval = "" if pd.isna(entry["low"]) else f"{entry['low']:.4g} to {entry['high']:.4g}"
        unit = "" if pd.isna(entry["unit"]) else f" {entry['unit']}"
        count = f"{int(entry['n']):,}" if entry["n"] else ""
        source = entry["source"]
        csv = loaded.root / "results" / f"{source}.csv"
        link = f"[`{source}`](results/{source}.csv)" if csv.is_file() else str(source)
        link += EARLIER if source in old else ""
        value = _number(entry["value"]) + unit
        lines.append(f"| `{entry['name']}` | {value} | {interval} | {count} | {link} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _headlines(loaded: Course) -> pd.DataFrame:
    path = loaded.root / "results" / "headline.csv"
    return read_table(path) if path.is_file() else pd.DataFrame(columns=list(HEADLINE_COLUMNS))


def published_table(loaded: Course, old: Old) -> str:
    """What others have published, beside our headline figure with its interval."""
    known = _headlines(loaded).set_index("name")
    head = ["", "published", "by", "here"]
    lines = [_line(head), "|---|---|---|---:|"]
    for entry in loaded.published:
        ours = "not recorded yet"
        if entry.headline in known.index:
            value, low, high = known.loc[entry.headline, ["value", "low", "high"]]
            ours = f"{value:.2f}" + ("" if pd.isna(low) else f" [{low:.2f}, {high:.2f}]")
            ours += EARLIER if known.at[entry.headline, "source"] in old else ""
        lines.append(_line([entry.text, entry.value, entry.source, ours]))
    return "\n".join(lines)


def notebook_table(loaded: Course, _: Old = ()) -> str:
    """The index of the notebooks: number, title with link, question, minutes. Introduced in notebook 00."""
    names = list(loaded.profiles)
    lines = [
        "| | notebook | question | " + " | ".join(f"min, {name}" for name in names) + " |",
        "|---|---|---|" + "---:|" * len(names),
    ]
    for entry in loaded.notebooks:
        minutes = " | ".join(f"{entry.minutes[name]:g}" for name in names)
        lines.append(
            f"| {entry.number} | [{entry.title}](notebooks/{entry.file}) | {entry.question} | {minutes} |"
        )
    spent = " | ".join(_duration(sum(nb.minutes[name] for nb in loaded.notebooks)) for name in names)
    lines.append(f"| | all of them | | {spent} |")
    return "\n".join(lines)


def _duration(minutes: float) -> str:
    return f"{minutes:.1f}" if minutes < 120 else f"{minutes / 60:.0f} h"


def claims_table(loaded: Course, old: Old | None = None, published: bool = False) -> str:
    """The ledger: every claim with verdict and evidence from results/, and what others have `published`.

    Introduced in notebook 00.
    """
    head = ["the field says", "verdict", "measured", *(["published"] if published else []), "notebook"]
    lines = [_line(head), "|" + "---|" * len(head)]
    waiting = {experiment[:2] for experiment in (outdated(loaded.root) if old is None else old)}
    for claim in ledger(loaded).to_dict("records"):
        others = [claim["published"] or "we found none"] if published else []
        verdict = claim["verdict"]
        if verdict != "open" and claim["notebook"] in waiting:
            verdict += EARLIER
        lines.append(_line([claim["text"], verdict, claim["evidence"], *others, claim["notebook"]]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def weights_paragraph(_: Course, old: Old) -> str:
    """The shipped checkpoints and compressed files with their accuracy, and what waits for a run on them."""
    lines = []
    for entry in checkpoint_index().values():
        found = entry["metrics"]
        lines.append(
            f"- `{entry['file']}`, {entry['bytes'] / 1e6:.2f} MB: {found['test_accuracy']:.2f} "
            f"[{found['test_low']:.2f}, {found['test_high']:.2f}] on {found['test_n']:,} test images"
            + (f"; a {entry['status']}" if entry.get("status") else "")
        )
    for entry in compressed_files().values():
        lines.append(
            f"- `{entry['file']}`, {entry['bytes'] / 1e6:.2f} MB, `{entry['start']}` with shared values: "
            f"{entry['validation_accuracy']:.2f} on {entry['validation_n']:,} validation images"
        )
    waiting = sorted({experiment[:2] for experiment in old})
    if waiting:
        lines.append(
            f"\nWhat notebooks {', '.join(waiting)} recorded was measured on earlier weights and waits for a "
            "run on these; it is marked below."
        )
    return "\n".join(lines) or "None yet; `make train` makes them."


def machine_paragraph(loaded: Course, _: Old = ()) -> str:
    """Where the speeds were measured and how long the training took, from the files beside the results."""
    path = loaded.root / "results" / "18_speed.json"
    if not path.is_file():
        return "No speed is recorded yet."
    made = provenance_of(path)
    machine, versions = made["machine"], made["versions"]
    known = _headlines(loaded).set_index("name")["value"]
    hours = ""
    if TRAINED in known:
        hours = f" The ResNet-50 was trained in {known[TRAINED]:.1f} hours on two cores."
    rivals = ", ".join(f"{name} {versions[name]}" for name in RUNTIMES if name in versions)
    return (
        f"Speeds: {machine['cpu']}, {machine['threads']} threads, {machine['isa']}; {rivals} "
        f"({made['date']}).{hours}"
    )


BLOCKS: dict[str, Callable[[Course, Old], str]] = {
    "headline": headline_table,
    "machine": machine_paragraph,
    "weights": weights_paragraph,
    "published": published_table,
    "notebooks": notebook_table,
    "claims": claims_table,
}
"""What makes each block."""


def fill(text: str, loaded: Course) -> str:
    """The text with every generated block made anew; StudyError for a block that nothing makes."""
    old = outdated(loaded.root)

    def block(match: re.Match[str]) -> str:
        if match[2] not in BLOCKS:
            raise StudyError(
                f"The text asks for {match[2]!r}; the generated blocks are {', '.join(BLOCKS)}."
            )
        if "<!-- generated:" in match[3]:
            raise StudyError(f"The generated block {match[2]!r} lacks its <!-- end -->; put it back.")
        return f"{match[1]}{BLOCKS[match[2]](loaded, old)}\n{match[4]}"

    return BLOCK.sub(block, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite README.md, or with --check say whether it agrees; 0 when it does."""
    made = argparse.ArgumentParser(
        prog="python -m quantlib.study.readme", description="Fill README.md's tables."
    )
    made.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 when README.md is out of date"
    )
    options = made.parse_args(arguments)
    try:
        return _rewrite(course(), options.check)
    except QuantlibError as error:
        print(error, file=sys.stderr)
        return 2


def _rewrite(loaded: Course, check_only: bool) -> int:
    """Fill the blocks of README.md; the exit status."""
    path: Path = loaded.root / "README.md"
    if not path.is_file():
        raise StudyError("There is no README.md beside course.toml.")
    before = path.read_text(encoding="utf-8")
    after = fill(before, loaded)
    if check_only:
        advice = "README.md is out of date: python -m quantlib.study.readme"
        print("README.md agrees." if before == after else advice)
        return int(before != after)
    write_atomic(path, after.encode())
    print("README.md: " + ("nothing to change." if before == after else "tables rewritten."))
    return 0


if __name__ == "__main__":
    sys.exit(main())

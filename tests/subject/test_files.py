"""A file is replaced whole or not at all, whoever writes at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quantlib.subject.files import replace_atomically, write_atomically


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replace_atomically(path) as aside:
        aside.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["state.pt"]


def test_the_old_file_is_whole_until_the_new_one_is(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    write_atomically(path, "old")
    with replace_atomically(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old" and aside.name == path.name
    assert path.read_text() == "new" and names(tmp_path) == ["index.json"]


def test_a_rename_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "answers.pt"
    write_atomically(path, b"old")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["answers.pt"]


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path, contents = tmp_path / "result.json", [str(digit) * 200_000 for digit in range(10)]
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda content: write_atomically(path, content), contents))
    assert path.read_text() in contents and names(tmp_path) == ["result.json"]


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "c.txt", "here")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "here"

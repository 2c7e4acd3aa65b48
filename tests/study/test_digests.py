"""What code a result came from."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import quantlib
from quantlib.errors import ConfigError
from quantlib.study.digests import code_digest, own_code_digest

CELL = """
from os.path import basename
def deep(x):
    return x + 1
def helper(x):
    return deep(x)
def other(x):
    return x in {"a", "b", "c", "d"}
class Net:
    def forward(self, x):
        return 3 * x
ways = {"helper": [lambda x: helper(x)]}
def work(x, default=other):
    '''Work.'''
    return ways["helper"][0](Net().forward(x)), basename("x")
def made(inner):
    return lambda: inner(1)
enclosing = made(work)
"""


def digest_of(text, name="enclosing"):
    """The digest of a function of a module with this text."""
    module = ModuleType("cells")
    exec(compile(text, "cells", "exec"), module.__dict__)
    return own_code_digest(getattr(module, name))


def test_only_other_code_makes_finished_work_another_sweep(tmp_path, monkeypatch):
    """A comment or a docstring may change while a sweep of hours is under way; a digit may not."""
    room = tmp_path / "quantlib" / "subject"
    room.mkdir(parents=True)
    monkeypatch.setattr("quantlib.__file__", str(tmp_path / "quantlib" / "__init__.py"))

    def digest(text):
        (room / "module.py").write_text(text)
        return code_digest(("subject",))

    plain = digest("def step():\n    return 'half'\n")
    assert (
        digest('"""A module."""\n# why\ndef step():  # so\n    """One\n    step."""\n\n    return \'half\'\n')
        == plain
    )
    assert digest("def step():\n    return 'whole'\n") != plain
    assert digest("def step():\n    return '# half'\n") != plain  # no comment
    with pytest.raises(ConfigError, match="no room 'cellar'"):
        code_digest(("cellar",))
    (room / "module.py").write_text("def step():\n    return 'half'\n")
    (room / "module.py").rename(room / "other.py")
    assert code_digest(("subject",)) != plain


@pytest.mark.parametrize(
    "change",
    [
        ("x + 1", "x + 2"), ("3 * x", "4 * x"), ("inner(1)", "inner(2)"), ('"a", "b"', '"a", "e"'),
        ("helper(x)]", "deep(x)]"),
    ],
    ids=["reached by name", "in a class", "enclosing", "a default", "in a list of a dictionary"],
)  # fmt: skip
def test_other_code_in_a_cell_has_another_digest(change):
    assert change[0] in CELL and len(digest_of(CELL)) == 16
    assert digest_of(CELL.replace(*change)) != digest_of(CELL)


def test_what_changes_no_result_keeps_a_cells_digest():
    plain = digest_of(CELL)
    assert digest_of(CELL.replace("Work.", "Work harder.")) == plain
    assert digest_of("# why\n\n" + CELL.replace("return deep(x)", "return deep(x)  # so")) == plain
    assert digest_of(CELL + "def never_used(x):\n    return x\n") == plain
    assert digest_of(CELL.replace("basename", "dirname")) != plain  # another name is other code
    assert own_code_digest(list) == ""


def test_a_cells_digest_is_the_same_in_every_process():
    """Sets of text have another order in each process."""
    here = str(Path(__file__).parent)
    program = f"import sys; sys.path.insert(0, {here!r}); import test_digests as t; "
    program += "print(t.digest_of(t.CELL))"
    found = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(quantlib.__file__).parents[1])},
        ).stdout.strip()
        for seed in ("1", "2", "3")
    ]  # fmt: skip
    assert set(found) == {digest_of(CELL)}

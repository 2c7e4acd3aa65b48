"""What code a result came from, so that a result of other code is not taken for finished."""

from __future__ import annotations

import ast
import hashlib
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import quantlib
from quantlib.errors import ConfigError

EVALUATING = ("quantization", "subject", "study/ptq.py", "study/rescue.py", "study/rescue_methods.py")
"""The code that an evaluation of a sweep runs."""


def code_digest(rooms: Sequence[str] = EVALUATING) -> str:
    """A digest of the library's own code, so that results of other code are not taken for finished.

    rooms: folders of the library, or modules of it. Comments, docstrings and empty lines do not count: a
    clearer sentence must not cost hours of work. The same under every version of Python. ConfigError for what
    is not there. Introduced in notebook 09.
    """
    folder, digest = Path(quantlib.__file__).parent, hashlib.sha256()
    for room in rooms:
        paths = [folder / room] if room.endswith(".py") else sorted((folder / room).rglob("*.py"))
        paths = [path for path in paths if path.is_file()]
        if not paths:
            raise ConfigError(f"quantlib has no room {room!r} whose code could be asked.")
        for path in paths:
            digest.update(f"{path.relative_to(folder)}\n{_only_code(path.read_text())}".encode())
    return digest.hexdigest()[:16]


def _only_code(source: str) -> str:
    """The lines of a module without comments, and without statements that are a string and nothing else."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            last = value.end_lineno or value.lineno
            lines[value.lineno - 1 : last] = [""] * (last - value.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def own_code_digest(function: Any) -> str:
    """A digest of a function and of those of its own module that it can reach; "" if it is not Python's.

    For the cells of a notebook: what is imported from elsewhere is `code_digest`'s. Reached are functions
    named in the code, bound as defaults or enclosed, also in dictionaries, lists and classes. Comments and
    what a docstring says do not count, numbers outside the functions neither. Another Python has another
    digest.
    Introduced in notebook 11.
    """
    said: set[str] = set()
    waiting = list(_functions_in(function))
    while waiting:
        found = waiting.pop()
        text = repr(_instructions(found.__code__, found.__doc__))
        if text not in said:
            said.add(text)
            waiting += [each for each in _reached(found) if each.__module__ == found.__module__]
    return hashlib.sha256("\n".join(sorted(said)).encode()).hexdigest()[:16] if said else ""


def _reached(function: FunctionType) -> Iterator[FunctionType]:
    """The functions that a function names, encloses or has as defaults."""
    values = [function.__globals__.get(name) for name in _names(function.__code__)]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it may have no value yet
            values.append(cell.cell_contents)
    values += [function.__defaults__, function.__kwdefaults__]
    for value in values:
        yield from _functions_in(value)


def _functions_in(value: Any) -> Iterator[FunctionType]:
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, type):
        yield from _functions_in(dict(vars(value)))
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _functions_in(part)


def _names(code: CodeType) -> set[str]:
    """All names in a function's code, with those of the functions that it makes."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)


def _instructions(code: CodeType, docstring: str | None = None) -> list[Any]:
    """What the code does, wherever it stands: no file, no line; sets in order, which differs by process."""
    constants: list[Any] = []
    for part in code.co_consts:
        if isinstance(part, CodeType):
            constants.append(_instructions(part))
        elif isinstance(part, frozenset):
            constants.append(sorted(map(repr, part)))
        elif docstring is None or part != docstring:
            constants.append(repr(part))
    return [code.co_code.hex(), code.co_names, code.co_varnames, constants]

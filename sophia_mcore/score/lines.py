"""The lines of `sophia grade`: what each must hold, and what is said about one that does not."""

from __future__ import annotations

import contextlib
import difflib
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.store.encodings import UTF8, encoding_of_file, not_text
from sophia_mcore.store.json_lines import parsed, wrong_item
from sophia_mcore.verify.rules import TYPES, is_type_name, known_benchmark, tables

_DEVICES = (("/", "dev"), ("/", "proc"))  # where a name means another file in another process
CHECKED_LINES = 1_000  # checked before any work; the others when their turn comes

_FIELDS: dict[str, tuple[type, ...]] = {
    "response": (str,), "answer": (str,), "type": (str, type(None)), "benchmark": (str, type(None)),
    "question": (str, type(None)), "tolerance": (int, float, type(None)), "options": (list, type(None)),
}  # fmt: skip


def _names(kinds: tuple[type, ...]) -> str:
    return " or ".join(kind.__name__ for kind in kinds if kind is not type(None))


@contextlib.contextmanager
def readable_twice(path: Path) -> Iterator[Path]:
    """A path from which the input can be read again and by other processes: a pipe or "-" (standard input) is copied.

    Raises UsageError when it cannot be read, SophiaError when there is no space for the copy.
    """
    standard = str(path) == "-"
    if not standard and (path.is_dir() or not path.exists() or (path.is_file() and path.parts[:2] not in _DEVICES)):
        yield from _in_utf8(path)
        return
    with tempfile.TemporaryDirectory(prefix="sophia-grade-") as folder:
        copy = Path(folder) / ("stdin" if standard else "input")
        with contextlib.ExitStack() as opened:
            try:
                source = sys.stdin.buffer if standard else opened.enter_context(open(path, "rb"))
            except OSError as error:
                raise UsageError(f"cannot read {path}: {error.strerror}") from error
            try:
                with open(copy, "wb") as target:
                    shutil.copyfileobj(source, target)
            except OSError as error:
                raise SophiaError(f"cannot copy {path} to {folder}: {error.strerror}") from error
        yield from _in_utf8(copy)


def _in_utf8(path: Path) -> Iterator[Path]:
    """The path itself, or that of a copy in UTF-8 of a file in UTF-16 or UTF-32."""
    try:
        encoding = encoding_of_file(path) if path.is_file() else UTF8
    except OSError:
        encoding = UTF8  # who reads it next says what is wrong
    if encoding == UTF8:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="sophia-grade-") as folder:
        copy = Path(folder) / path.name
        try:
            with (
                open(path, encoding=encoding, newline="\n") as text,
                open(copy, "w", encoding="utf-8", newline="\n") as out,
            ):
                shutil.copyfileobj(text, out)
        except UnicodeError as error:
            raise UsageError(f"cannot read {path}: {not_text(error)}") from error
        yield copy


def check_head(path: Path) -> None:
    """Check the first lines of an input. Raises UsageError as `checked` does, or when the file cannot be read."""
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if number > CHECKED_LINES:
                    return
                if line.strip():
                    checked(path, number, line)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def checked(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """A line as a dictionary with what grading needs. Raises UsageError saying what is wrong and where."""
    where = f"{path}, line {number}"
    try:
        row = parsed(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where} is {wrong_item(row)}")
    for key in ("id", "response", "answer"):
        if key not in row:
            raise UsageError(f'{where} has no "{key}"')
    for key, kinds in _FIELDS.items():
        if key in row and not isinstance(row[key], kinds):
            raise UsageError(f'{where}: "{key}" is a {type(row[key]).__name__}, not a {_names(kinds)}')
    if not all(isinstance(option, str) for option in row.get("options") or ()):
        raise UsageError(f'{where}: "options" holds something that is not a string')
    if not row["answer"].strip():
        raise UsageError(f'{where}: "answer" is empty')
    tolerance = row.get("tolerance")
    if tolerance is not None and (isinstance(tolerance, bool) or not (math.isfinite(tolerance) and tolerance >= 0)):
        raise UsageError(f'{where}: "tolerance" is {tolerance}, not a number from 0')
    for key, known, names in (("benchmark", known_benchmark, tables().benchmarks), ("type", is_type_name, TYPES)):
        if row.get(key) and not known(row[key]):
            nearest = difflib.get_close_matches(row[key].casefold(), names, n=1, cutoff=0.4)
            raise UsageError(
                f'{where}: unknown "{key}" {row[key][:100]!r}: '
                + (f"did you mean {nearest[0]!r}?" if nearest else f"one of {', '.join(names)}")
            )
    return row

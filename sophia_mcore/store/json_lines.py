"""Reads JSON Lines files of users: one object per line, UTF-8, with or without a byte order mark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError

_MARK = b"\xef\xbb\xbf"


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (line number from 1, object) for each line that is not blank. A string in place of the object is an error.

    Only a newline ends a line; U+2028 and similar characters are text. Raises SophiaError when reading fails.
    """
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip(_MARK + b" \t\r\n"):
                    yield number, json_object(line)
    except OSError as error:
        raise SophiaError(f"cannot read {path}: {error.strerror}") from error


def json_object(line: bytes) -> dict[str, Any] | str:
    """The JSON object of a line, or a text that says what is wrong with the line."""
    try:
        item = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({str(error)[:80]})"
    return item if isinstance(item, dict) else "not a JSON object"

"""JSON lines of others: one object a line, UTF-8, with or without a byte order mark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError

_MARK = b"\xef\xbb\xbf"


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(number, object) of each line that is not blank, numbers from 1; a string says what the line is instead.

    A line ends with a newline alone: U+2028 and its like are text. Raises SophiaError when the file cannot be read.
    """
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip(_MARK + b" \t\r\n"):
                    yield number, json_object(line)
    except OSError as error:
        raise SophiaError(f"cannot read {path}: {error.strerror}") from error


def json_object(line: bytes) -> dict[str, Any] | str:
    """The object of a line, or what it is instead, in words."""
    try:
        item = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({str(error)[:80]})"
    return item if isinstance(item, dict) else "not a JSON object"

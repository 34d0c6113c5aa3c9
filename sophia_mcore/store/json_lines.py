"""Reads JSON files of users, as lines or as one list of objects, in UTF-8, UTF-16 or UTF-32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.encodings import UTF8, encoding_of_file, not_text

_MARK = b"\xef\xbb\xbf"


class Repeated(str):
    """A key that stands twice in one object: in the place of the object, for nobody can tell which value is meant."""


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (line number from 1, object) for each line that is not blank. A string in place of the object is an error.

    Only a newline ends a line; U+2028 and similar characters are text. Raises SophiaError when reading fails.
    """
    try:
        for number, line in enumerate(_lines(path, encoding_of_file(path)), start=1):
            if line.strip(_MARK + b" \t\r\n"):
                yield number, json_object(line)
    except OSError as error:
        raise SophiaError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise SophiaError(f"cannot read {path}: {not_text(error)}") from error


def _lines(path: Path, encoding: str) -> Iterator[bytes]:
    """The lines as UTF-8."""
    if encoding == UTF8:
        with open(path, "rb") as lines:
            yield from lines
        return
    with open(path, encoding=encoding, newline="\n") as text:
        for line in text:
            yield line.encode()


def json_object(line: bytes) -> dict[str, Any] | str:
    """The JSON object of a line, or a text that says what is wrong with the line."""
    try:
        item = parsed(line.decode("utf-8-sig"))
    except UnicodeError as error:
        return not_text(error)
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({str(error)[:80]})"
    return item if isinstance(item, dict) else wrong_item(item)


def parsed(text: str | bytes) -> Any:
    """JSON, in which an object with a key that stands twice is ``Repeated``, and so is what holds it.

    >>> parsed('[{"a": {"b": 1, "b": 2}}, {"a": 1}]')
    ['b', {'a': 1}]
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Repeated:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            return Repeated(key)
        if isinstance(value, Repeated):
            return value
        if isinstance(value, list):
            below = _repeated_in(value)
            if below is not None:
                return below
        found[key] = value
    return found


def _repeated_in(items: list[Any]) -> Repeated | None:
    for item in items:
        below = _repeated_in(item) if isinstance(item, list) else item
        if isinstance(below, Repeated):
            return below
    return None


def wrong_item(item: Any) -> str:
    """What is wrong with an item that is no object, in words."""
    if isinstance(item, Repeated):
        return f"ambiguous: the key {str(item)[:60]!r} stands twice"
    return "not a JSON object"


def read_json_list(path: Path, key: str = "") -> list[dict[str, Any] | str]:
    """The objects of a file that holds one list of them; a string says what an item is instead.

    With ``key`` the file may hold one object of them, too: the name of each becomes its ``key``, unless it has one.
    Raises SophiaError when the file cannot be read or holds something else.
    """
    items = read_json_value(path)
    if key and isinstance(items, dict):
        items = [{key: name} | item if isinstance(item, dict) else item for name, item in items.items()]
    if not isinstance(items, list):
        wrong = f"{wrong_item(items)}: it " if isinstance(items, Repeated) else ""
        raise SophiaError(f"{path} {wrong}must hold a list of objects (or be .jsonl: one object per line)")
    return [item if isinstance(item, dict) else wrong_item(item) for item in items]


def read_json_value(path: Path) -> Any:
    """What a JSON file holds. Raises SophiaError when it cannot be read."""
    try:
        return parsed(path.read_bytes())
    except OSError as error:
        raise SophiaError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise SophiaError(f"cannot read {path}: {not_text(error)}") from error
    except (ValueError, RecursionError) as error:
        raise SophiaError(f"{path} is not valid JSON: {error}") from error

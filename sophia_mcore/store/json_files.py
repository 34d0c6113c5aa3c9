"""Small JSON files: of model and dataset folders, and summaries that phases leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None if it does not exist. Raises SophiaError if it is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SophiaError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise SophiaError(f"{path}: damaged JSON ({error})") from None
    if not isinstance(value, dict):
        raise SophiaError(f"{path}: a JSON object is expected, not {type(value).__name__}")
    return value


def require_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises SophiaError when it is missing, damaged or another value."""
    value = read_json(path)
    if value is None:
        raise SophiaError(f"{path}: no such file")
    return value


def json_or_empty(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} when it is missing or damaged, for what can do without."""
    try:
        return read_json(path) or {}
    except SophiaError:
        return {}

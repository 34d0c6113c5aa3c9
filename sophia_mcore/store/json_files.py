"""Reads small JSON files: those of model and dataset folders, and the summaries that phases write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if the file is missing. Raises SophiaError if it holds something else."""
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
    """The JSON object in a file. Raises SophiaError when the file is missing or its content is no JSON object."""
    value = read_json(path)
    if value is None:
        raise SophiaError(f"{path}: no such file")
    return value


def json_or_empty(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} when the file is missing or damaged. For callers that can work without it."""
    try:
        return read_json(path) or {}
    except SophiaError:
        return {}

"""Small files of model and dataset directories."""

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
    except (OSError, ValueError) as error:
        raise SophiaError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise SophiaError(f"{path} is not a JSON object")
    return value

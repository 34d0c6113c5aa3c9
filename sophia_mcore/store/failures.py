"""Records of failed work units. FOLDER/failures/<unit>.json says how often a unit has failed, and why the last time.

A failing unit must not stop the others: it returns to the queue, and after some attempts it is not claimed any more.
"""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.store import atomic

_FOLDER = "failures"


@dataclass(frozen=True, slots=True)
class Failure:
    """How often a unit has failed (``attempts``), and how it failed the last time."""

    unit: str
    attempts: int
    error: str
    host: str


def read_failures(folder: Path) -> dict[str, Failure]:
    """Failures by unit id. Damaged files are ignored."""
    found: dict[str, Failure] = {}
    for path in sorted((folder / _FOLDER).glob("*.json")):
        if failure := _read(path):
            found[failure.unit] = failure
    return found


def _read(path: Path) -> Failure | None:
    try:
        return Failure(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def record_failure(folder: Path, unit_id: str, error: Exception) -> Failure:
    """Count one more failed attempt. Only the holder of the unit's claim may call this. Raises SophiaError."""
    path = folder / _FOLDER / f"{unit_id}.json"
    before = _read(path)
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not isinstance(error, SophiaError):
        text = f"{type(error).__name__}: {text}"
    failure = Failure(unit_id, before.attempts + 1 if before else 1, text, socket.gethostname())
    atomic.write_json(path, asdict(failure))
    return failure


def forget_failures(folder: Path) -> int:
    """Allow every failed unit to be tried again; returns how many there were."""
    count = len(read_failures(folder))
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)
    return count

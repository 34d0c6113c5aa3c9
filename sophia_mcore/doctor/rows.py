"""The type of a row in the doctor's table, and a helper that runs a command. Nothing here raises."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "warning", "stops"]  # "stops": the given configuration cannot run here
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One check: what was checked, the result, what it costs if something is missing, and how to get it."""

    name: str
    state: State
    found: str
    cost: str = ""
    remedy: str = ""


def ask(*command: str) -> str | None:
    """Standard output of a command; None if it is missing, fails or gives no answer within five seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

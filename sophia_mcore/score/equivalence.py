"""Equality that needs real mathematics. Runs only inside the killable workers: everything here may hang."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from math_verify import parse, verify


@lru_cache(maxsize=4096)
def _parsed(answer: str) -> list[Any]:
    return parse(f"\\boxed{{{answer}}}", parsing_timeout=None)


def equivalent(task: dict[str, Any]) -> bool:
    """True iff math-verify holds ``task["prediction"]`` equal to ``task["gold"]`` (both bare answers).

    Raises MemoryError and RecursionError, which are the verifier's failure and not the answer's; values that cannot be
    compared at all are different.
    """
    try:
        return verify(_parsed(task["gold"]), _parsed(task["prediction"]), timeout_seconds=None, raise_on_error=True)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return False

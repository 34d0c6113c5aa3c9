"""The labels of a run's models. Folders of answers, reports, MLflow and the settings rl.start and promote use them."""

from __future__ import annotations

import re

BASE = "base"  # models.policy
STAGE_START = "rl-start"  # the model that the on-policy stage began with
STAGE = "rl"  # the on-policy stage's result

_ROUND = re.compile(r"round-(\d+)")


def round_label(index: int) -> str:
    """The export of round ``index``; the round's folder has the same name.

    >>> round_label(0)
    'round-0'
    """
    return f"round-{index}"


def round_of(label: str) -> int | None:
    """The round of such a label or folder; None for any other name.

    >>> round_of("round-12"), round_of("rl")
    (12, None)
    """
    match = _ROUND.fullmatch(label)
    return int(match[1]) if match else None

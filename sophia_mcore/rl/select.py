"""Pre-selection of questions by how often the starting model answers them rightly. Pure functions.

[P] SOPHIA asks 16 times and keeps the questions with an accuracy from 0.4 to 0.6. A guessed question (yes or no) has
such an accuracy too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sophia_mcore.records import BROKEN, VerdictName


@dataclass(frozen=True, slots=True)
class Tally:
    """Of one question: right answers, and answers whose verdict is not broken."""

    right: int
    judged: int


def tallies(verdicts: Iterable[tuple[str, VerdictName]]) -> dict[str, Tally]:
    """From (question id, verdict) of every answer to a tally per question."""
    right: Counter[str] = Counter()
    judged: dict[str, int] = defaultdict(int)
    for question, verdict in verdicts:
        judged[question] += verdict not in BROKEN
        right[question] += verdict == "correct"
    return {question: Tally(right[question], judged[question]) for question in judged}


def is_chosen(tally: Tally, samples: int, minimum: float, maximum: float) -> bool:
    """Whether a question stays: at least half of its ``samples`` are judged, and the accuracy lies in the bounds.

    >>> [right for right in range(17) if is_chosen(Tally(right, 16), 16, 0.4, 0.6)]
    [7, 8, 9]
    """
    return 2 * tally.judged >= samples and tally.judged > 0 and minimum <= tally.right / tally.judged <= maximum


def histogram(found: Mapping[str, Tally], types: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """How many questions have how many right answers, for "all" and by answer type (``types``: of each question)."""
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for question, tally in found.items():
        for group in ("all", types[question] or "untyped"):
            counts[group][tally.right] += 1
    return {
        group: {str(right): number for right, number in sorted(row.items())} for group, row in sorted(counts.items())
    }

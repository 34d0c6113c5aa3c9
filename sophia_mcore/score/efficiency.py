"""Outcome efficiency: how much of an answer is said before it is there (compare arXiv 2412.21187). Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Of some answers. ``share``: mean of right x share of the text up to the right answer; 1 means that all are right
    and nothing is said behind it. ``tokens``: mean tokens up to it, of the right answers; None where none is right.
    """

    share: float
    tokens: float | None
    answers: int

    def as_json(self) -> dict[str, float | int | None]:
        """For a report."""
        tokens = None if self.tokens is None else round(self.tokens, 2)
        return {"share": round(self.share, 4), "tokens": tokens, "answers": self.answers}


def share_needed(text: str, extracted: str) -> float:
    """Share of a right answer's text up to the first place where the final answer ``extracted`` stands by itself.

    An estimate: in characters, and the answer may stand there as an operand. 1.0 where it is not found as it was read.
    """
    whole = len(text.strip())
    found = re.search(rf"(?<!\w){re.escape(extracted)}(?!\w)", text) if extracted else None
    return min(1.0, found.end() / whole) if found and whole else 1.0


def outcome_efficiency(answers: Iterable[tuple[str, str, bool, int]]) -> Efficiency | None:
    """Of answers (text, extracted answer, right, tokens). None without any."""
    count, shares, tokens = 0, [], []
    for text, extracted, right, length in answers:
        count += 1
        if right:
            shares.append(share_needed(text, extracted))
            tokens.append(shares[-1] * length)
    if not count:
        return None
    return Efficiency(sum(shares) / count, sum(tokens) / len(tokens) if tokens else None, count)

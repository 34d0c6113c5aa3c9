"""Two models on the same questions: the paired difference with its 95% interval, and the questions that flipped."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from sophia_mcore.evaluate.statistics import Z95
from sophia_mcore.records import Answer, Question
from sophia_mcore.report.reading import Problems, columns
from sophia_mcore.store.layout import RunFolder

MAX_FLIPS = 200  # questions listed per model and protocol
_MAX_TEXT = 2_000

# question id -> share of right samples, what was extracted from the first, its end
Answers = dict[str, tuple[float, str, str]]


def answers_of(run: RunFolder, label: str, protocol: str, problems: Problems) -> Answers:
    """What a model answered to each question under a protocol."""
    names = ["question_id", "verdict", "extracted", "text"]
    rows = columns(run.evaluation(label, protocol), Answer, names, problems, lambda _, text: text[-_MAX_TEXT:])
    grouped: dict[str, list[tuple[bool, str, str]]] = defaultdict(list)
    for question, verdict, extracted, text in zip(*(rows[name] for name in names), strict=True):
        grouped[question].append((verdict == "correct", extracted[:_MAX_TEXT], text))
    return {q: (sum(one[0] for one in made) / len(made), *made[0][1:]) for q, made in grouped.items()}


def pair(both: list[str], first: Answers, second: Answers, questions: dict[str, Question]) -> dict[str, Any]:
    """The difference second - first over the questions ``both``, which must not be empty.

    The interval is the normal 95% interval of a mean of paired differences.
    """
    differences = [second[name][0] - first[name][0] for name in both]
    n = len(differences)
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / max(1, n - 1)
    half = Z95 * math.sqrt(variance / n)
    flips = [name for name, difference in zip(both, differences, strict=True) if difference]
    flips.sort(key=lambda name: second[name][0] > first[name][0])  # right to wrong first
    return {
        "n": n,
        "a": math.fsum(first[name][0] for name in both) / n,
        "b": math.fsum(second[name][0] for name in both) / n,
        "difference": mean,
        "low": mean - half,
        "high": mean + half,
        "better": sum(d > 0 for d in differences),
        "worse": sum(d < 0 for d in differences),
        "flips": [
            {
                "id": name,
                "kind": _kind(first[name][0], second[name][0]),
                "question": questions[name].question[:_MAX_TEXT],
                "answer": questions[name].answer[:_MAX_TEXT],
                "a": first[name],
                "b": second[name],
            }
            for name in flips[:MAX_FLIPS]
        ],
        "flips_in_all": len(flips),
    }


def _kind(before: float, after: float) -> str:
    """How a question's share of right samples changed, in words."""
    if {before, after} == {0.0, 1.0}:
        return "right to wrong" if before else "wrong to right"
    return "less often right" if after < before else "more often right"

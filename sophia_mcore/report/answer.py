"""The answer with which the page begins: pass@1 before and after, as bars with intervals and as one sentence each.

The bars are drawn without a script, so that they are there in print, on a phone and at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sophia_mcore.records import Question
from sophia_mcore.report.pairs import answers_of, pair
from sophia_mcore.report.reading import Problems, records
from sophia_mcore.store.labels import BASE, STAGE, STAGE_START, round_of
from sophia_mcore.store.layout import RunFolder

BEFORE = {BASE: "before", STAGE_START: "before the on-policy stage"}
AFTER = {STAGE: "after the on-policy stage"}


@dataclass(frozen=True, slots=True)
class Bar:
    """One model under one protocol; all numbers are shares from 0 to 1. ``tone``: "before" or "after"."""

    name: str
    protocol: str
    share: float
    low: float
    high: float
    n: int
    tone: str


@dataclass(frozen=True, slots=True)
class Gain:
    """From one model to a later one, paired by question: shares, and the difference with its 95% interval."""

    before: str
    after: str
    protocol: str
    first: float
    last: float
    difference: float
    low: float
    high: float
    n: int


def steps_of(labels: Iterable[str]) -> list[tuple[str, str]]:
    """Which models are compared with which: the base with the last round, and the stage's start with its end.

    >>> steps_of(["base", "round-0", "round-1", "rl-start", "rl"])
    [('base', 'round-1'), ('rl-start', 'rl')]
    """
    names = list(labels)
    rounds = [name for name in names if round_of(name) is not None]
    found = [(BASE, rounds[-1])] if BASE in names and rounds else []
    return found + [(STAGE_START, STAGE)] * (STAGE_START in names and STAGE in names)


def bars(evaluations: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, list[Bar]]]:
    """The bars of each protocol: a bar for each model of each run. ``evaluations``: the run's name in front of its
    models' ("" for the only one), and the "evaluation" of its report."""
    found: dict[str, list[Bar]] = {}
    for name, evaluation in evaluations:
        for label, result in evaluation.items():
            for protocol, values in result["protocols"].items():
                low, high = values["ci95"]
                tone = "before" if label in BEFORE else "after"
                shown = f"{name} {named(label)}".strip()
                bar = Bar(shown, protocol, values["pass_at_1"], low, high, values["n"], tone)
                found.setdefault(protocol, []).append(bar)
    return list(found.items())


def named(label: str) -> str:
    """What the page calls a model.

    >>> [named(label) for label in ("base", "round-0", "rl")]
    ['before (base)', 'after round 0', 'after the on-policy stage (rl)']
    """
    if (index := round_of(label)) is not None:
        return f"after round {index}"
    said = BEFORE.get(label) or AFTER.get(label)
    return f"{said} ({label})" if said else label


def gains(run: RunFolder, evaluation: dict[str, Any], problems: Problems) -> list[Gain]:
    """The gain of each step under each protocol that both models were asked under; first the first protocol's."""
    questions = {q.id: q for q in records(run.evaluation_questions_file, Question, problems)}
    found = []
    for before, after in steps_of(evaluation):
        for protocol in evaluation[before]["protocols"]:
            if protocol not in evaluation[after]["protocols"]:
                continue
            first, last = (answers_of(run, label, protocol, problems) for label in (before, after))
            both = [name for name in questions if name in first and name in last]
            if both:
                p = pair(both, first, last, questions)
                found.append(
                    Gain(before, after, protocol, p["a"], p["b"], p["difference"], p["low"], p["high"], p["n"])
                )
    return found

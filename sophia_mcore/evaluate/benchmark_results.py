"""Computes the scores of benchmarks from scored answers: main score and sub-metrics, with confidence intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sophia_mcore.benchmarks.published import published
from sophia_mcore.benchmarks.scoring import RULES_ONLY, Score, details_of, label_of
from sophia_mcore.benchmarks.table import Benchmark, benchmark_named
from sophia_mcore.benchmarks.tables import TABLES, Scored
from sophia_mcore.evaluate.statistics import pass_at_1, wilson
from sophia_mcore.records import Question


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scored answer to a question of a benchmark. ``truncated``: cut off at the token limit; None: not known."""

    question_id: str
    values: Mapping[str, Any]
    verdict: str
    settled_by: str
    credit: float
    direct: bool = False
    truncated: bool | None = False

    @property
    def right(self) -> bool:
        return self.verdict == "correct"


def outcome(question: Question, score: Score, truncated: bool | None = None) -> Outcome:
    """The outcome of an answer that was scored outside of a run: a file does not tell which answers were cut off."""
    values = details_of(question)["values"]
    return Outcome(question.id, values, score.verdict, score.settled_by, score.credit, score.direct, truncated)


def benchmark_results(
    name: str, outcomes: Sequence[Outcome], model: str = "", scoring: str = "paper, rules only"
) -> dict[str, Any]:
    """All metrics of one benchmark. Scores and shares are in [0, 1].

    {"benchmark", "title", "score", "n", "ci95", "samples", "truncated", "unreadable", "judge_needed", "settled_by_llm",
    "judge_failed"?, "scoring": how verdicts come about, "groups": {group: {name: {"score", "n", "ci95"}}},
    "worst_case"?, "multi_step"?, "vlmevalkit": VLMEvalKit's table, "published": [{"model", "score"}]}. Questions
    outside of the reported split are used only in VLMEvalKit's table. ``unreadable``: share of answers without a final
    answer. ``truncated``: None where that is not known. ``judge_needed``: share that only a judge can score.
    ``scoring``: the label of the scorer. ``judge_failed``, with a judge: share of answers for which it gave no usable
    reply though it was asked; the label says so where it gave none at all. ``worst_case``: of the questions that were
    asked in all their variants, if there are any.
    """
    benchmark = benchmark_named(name)
    counted = [one for one in outcomes if all(one.values.get(key) == value for key, value in benchmark.only.items())]
    count = max(1, len(counted))
    cut = [one.truncated for one in counted]
    found: dict[str, Any] = {"benchmark": name, "title": benchmark.title} | _summary(counted)
    found |= {
        "samples": len(counted),
        "truncated": None if None in cut else sum(map(bool, cut)) / count,
        "unreadable": sum(one.verdict == "no_answer" for one in counted) / count,
        "judge_needed": sum(one.settled_by == "none" for one in counted) / count,
        "settled_by_llm": sum(one.settled_by == "llm" for one in counted) / count,
        "scoring": label_of(benchmark, scoring),
        "expected_n": benchmark.questions,
        "groups": {group: _group(counted, group) for group in benchmark.groups},
        "vlmevalkit": TABLES[benchmark.table](_first_samples(outcomes)),
        "published": published(name, model),
    }
    if found["scoring"] and not found["scoring"].endswith(RULES_ONLY):
        expected = ("llm",) if scoring.startswith("paper") else ("llm", "rules")
        failed = (one.settled_by not in expected or one.verdict == "error" for one in counted)
        found["judge_failed"] = sum(failed) / count
        if found["judge_failed"] == 1:
            found["scoring"] += " without a usable reply"
    if benchmark.worst_of and (worst := _worst(counted, benchmark)):
        found["worst_case"] = _summary(worst)
    if benchmark.multi_step:
        found["multi_step"] = _multi_step(counted)
    return found


def _summary(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    share, n = pass_at_1((one.question_id, one.right) for one in outcomes)
    return {"score": share if n else None, "n": n, "ci95": list(wilson(share, n))}


def _group(outcomes: Sequence[Outcome], group: str) -> dict[str, Any]:
    members: dict[str, list[Outcome]] = defaultdict(list)
    for one in outcomes:
        value = one.values.get(group) or "(none)"
        for name in value if isinstance(value, list) else [value]:
            members[str(name)].append(one)
    return {name: _summary(rows) for name, rows in sorted(members.items(), key=lambda item: _natural(item[0]))}


def _natural(name: str) -> tuple[int, str]:
    return (int(name) if name.isdigit() else 1 << 30, name)


def _first_samples(outcomes: Iterable[Outcome]) -> list[Scored]:
    """The first sample of each question: VLMEvalKit's tables use only one."""
    first: dict[str, Outcome] = {}
    for one in outcomes:
        first.setdefault(one.question_id, one)
    return [Scored(one.values, one.right, one.direct) for one in first.values()]


def _worst(outcomes: Sequence[Outcome], benchmark: Benchmark) -> list[Outcome]:
    """One outcome per seed question that was asked in all variants. It is right if the first samples of all are."""
    first: dict[str, Outcome] = {}
    for one in outcomes:
        first.setdefault(one.question_id, one)
    seeds: dict[str, list[Outcome]] = defaultdict(list)
    for one in first.values():
        seeds[str(one.values[benchmark.worst_of])].append(one)
    return [
        Outcome(seed, rows[0].values, "correct" if all(row.right for row in rows) else "wrong", "rules", -1.0)
        for seed, rows in seeds.items()
        if len(rows) >= benchmark.variants
    ]


def _multi_step(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Step accuracy (mean share of right parts) and question completeness (all parts right) of multi-step answers.

    ``ci95`` has the Wilson interval of both. It is never too narrow for step accuracy: no values in [0, 1] vary more
    than those that are only 0 or 1.
    """
    rows = [one for one in outcomes if one.values.get("answer_type") == "multi-step"]
    if not rows:
        return {"n": 0}
    rates = {
        "step_accuracy_rate": sum(max(0.0, row.credit) for row in rows) / len(rows),
        "question_completeness_rate": sum(row.right for row in rows) / len(rows),
    }
    return {"n": len(rows), "ci95": {name: list(wilson(rate, len(rows))) for name, rate in rates.items()}} | rates


def benchmark_of(question: Question) -> Benchmark | None:
    """The benchmark of a question; None if the question is not from a benchmark."""
    return benchmark_named(question.benchmark) if question.benchmark else None

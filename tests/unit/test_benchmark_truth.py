"""The grader against a person's verdict on the eight benchmarks: nothing wrong is rewarded, nothing right missed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sophia_mcore.verify import GradeItem, Grader
from tests.support import benchmark_files
from tests.support.benchmark_files import NEEDED, folder

# Public file of shared/benchmarks -> our name of the benchmark.
PUBLIC = {
    "mmmu": "mmmu", "mmmu_pro": "mmmupro", "mathvista": "mathvista", "mathverse": "mathverse", "dynamath": "dynamath",
    "mathvision": "mathvision", "mv_math": "mvmath", "olympiadbench": "olympiadbench",
}  # fmt: skip
ARGUED = {"mv_math-041"}  # two sentences that mean the same: for a judge


def verdicts(items: list[GradeItem]) -> list[bool]:
    with Grader(workers=1, timeout_seconds=10.0) as grader:
        return [grade.verdict == "correct" for grade in grader.grade_many(items)]


def test_short_answers() -> None:
    """A table of benchmark, type, gold answer, answer, verdict and options; where there is one, the tolerance."""
    file = Path(benchmark_files.__file__).with_name("benchmark_truth.jsonl")
    cases: list[Any] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(cases) > 250 and {case[0] for case in cases} == set(PUBLIC.values())
    items = [
        GradeItem(str(number), answer, gold, kind, tuple(options), benchmark, *tolerance)
        for number, (benchmark, kind, gold, answer, _, options, *tolerance) in enumerate(cases)
    ]
    mistaken = [case for case, right in zip(cases, verdicts(items), strict=True) if right != case[4]]
    assert not mistaken, f"{len(mistaken)} verdicts differ, such as {mistaken[:5]}"
    assert sum(not case[4] for case in cases) > 60  # wrong ones are tried as well


@NEEDED
def test_all_public_cases() -> None:
    cases = [
        (benchmark, case)
        for name, benchmark in PUBLIC.items()
        for case in map(json.loads, (folder() / f"public/{name}.jsonl").read_text(encoding="utf-8").splitlines())
    ]
    items = [
        GradeItem(
            case["id"], case["response"], str(case["answer"]), case.get("answer_type") or case["question_type"],
            tuple(case.get("options") or ()), benchmark, float(case["error"]) if case.get("error") else None,
        )
        for benchmark, case in cases
    ]  # fmt: skip
    differ = {case["id"] for (_, case), right in zip(cases, verdicts(items), strict=True) if right != case["truth"]}
    assert differ == ARGUED

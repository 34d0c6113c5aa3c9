"""Hundreds of made pairs per kind of answer: nothing wrong is rewarded, and what is right is.

Each kind makes a gold answer, other ways of writing it, and answers that look alike and are wrong.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from sophia_mcore.verify import GradeItem, Grader
from tests.support import (
    grade_clauses,
    grade_corrections,
    grade_displays,
    grade_endings,
    grade_indices,
    grade_kinds,
    grade_lookalikes,
    grade_prose,
    grade_stated,
    grade_statements,
    grade_unread,
)
from tests.support.grade_kinds import Pair

PAIRS_PER_KIND = 300
MAKERS = (
    grade_kinds,
    grade_lookalikes,
    grade_clauses,
    grade_corrections,
    grade_unread,
    grade_displays,
    grade_indices,
    grade_statements,
    grade_stated,
    grade_prose,
    grade_endings,
)
KINDS = {name: maker for module in MAKERS for name, maker in module.KINDS.items()}


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=2, timeout_seconds=5.0) as instance:
        yield instance


def verdicts(grader: Grader, pairs: list[Pair]) -> list[bool]:
    items = [
        GradeItem(str(i), pair.response, pair.gold, pair.type, pair.options, pair.rules) for i, pair in enumerate(pairs)
    ]
    return [grade.verdict == "correct" for grade in grader.grade_many(items)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_wrong_is_rewarded_and_nothing_right_is_missed(grader: Grader, kind: str, seed: int) -> None:
    chance = random.Random(f"{kind}{seed}")
    pairs: list[Pair] = []
    while len(pairs) < PAIRS_PER_KIND:
        pairs += KINDS[kind](chance)
    found = verdicts(grader, pairs)
    rewarded = [pair for pair, right in zip(pairs, found, strict=True) if right and not pair.right]
    missed = [pair for pair, right in zip(pairs, found, strict=True) if pair.right and not right]
    assert not rewarded, f"{len(rewarded)} wrong answers rewarded, such as {rewarded[:5]}"
    assert not missed, f"{len(missed)} right answers missed, such as {missed[:5]}"
    assert 0.2 < sum(pair.right for pair in pairs) / len(pairs) < 0.8  # both are tried


def written_pairs() -> list[Pair]:
    """Pairs written by hand: near misses of all kinds, with what a person would say."""
    lines = Path(grade_kinds.__file__).with_name("grade_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Pair(**{**row, "options": tuple(row.get("options", ()))}) for row in rows]


def test_pairs_written_by_hand(grader: Grader) -> None:
    pairs = written_pairs()
    assert len(pairs) > 5_000
    mistaken = [pair for pair, right in zip(pairs, verdicts(grader, pairs), strict=True) if right != pair.right]
    assert not mistaken, f"{len(mistaken)} verdicts are mistaken, such as {mistaken[:5]}"

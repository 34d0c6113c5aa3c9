"""From rewards of episodes to what each turn is worth."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sophia_mcore.config.functions import RewardTerm
from sophia_mcore.rl.credit import Shaping, credit, judged_groups
from sophia_mcore.rl.groups import Graded, advantages

CORRECT = (RewardTerm(function="correct"),)
MIXED = (RewardTerm(function="correct", weight=0.9), RewardTerm(function="format", weight=0.1))


def turn(index: int, place: int = 0, question: str = "q", **fields: Any) -> Graded:
    given: dict[str, Any] = {"verdict": "wrong", "truncated": False, "tokens": 5, "scores": {"correct": 0.0}}
    name = f"{question}.n{index}.t{place}"
    return Graded(id=name, question_id=question, index=index, turn=place, **{**given, **fields})


def right(index: int, place: int = 0, **fields: Any) -> Graded:
    return turn(index, place, verdict="correct", **{"scores": {"correct": 1.0}, **fields})


def weighed(turns: list[Graded], weigh: str = "episode", terms: Any = CORRECT, **options: Any) -> dict[str, float]:
    groups, _ = judged_groups(turns, {}, terms, options.pop("shaping", Shaping()))
    found, _ = credit(groups, weigh=weigh, advantage=options.pop("advantage", "group_normalized"), **options)
    return {one.id: one.advantage for one in found}


@pytest.mark.parametrize("overlong", ["wrong", "graded", "soft", "masked"])
def test_the_verdict_alone_is_weighed_as_before(overlong: Any) -> None:
    turns = [
        right(0), turn(1), right(2, truncated=True), turn(3, verdict="timeout", scores={"correct": None}),
        turn(4, verdict="no_answer", tokens=95), right(5), right(0, question="p"), right(1, question="p"),
    ]  # fmt: skip
    options = {"overlong": overlong, "max_tokens": 100, "overlong_cache": 20}
    before, dropped = advantages(turns, **options)
    groups, left_out = judged_groups(turns, {}, CORRECT, Shaping(**options))
    after, unused = credit(groups, weigh="episode", advantage="group_normalized", masked=overlong == "masked")
    assert [(one.id, one.advantage) for one in after] == [(one.id, one.advantage) for one in before]
    assert (left_out + unused).total() + len(after) == len(turns) == dropped.total() + len(before)
    assert left_out["not_judged"] == dropped["timeout"] == 1


def test_terms_are_weighed() -> None:
    scores = [{"correct": 1.0, "format": 0.0}, {"correct": 0.0, "format": 1.0}, {"correct": 0.0, "format": 0.0}]
    turns = [
        turn(index, verdict="correct" if value["correct"] else "wrong", scores=value)
        for index, value in enumerate(scores)
    ]
    found = weighed(turns, terms=MIXED, advantage="group_mean")
    mean = (0.9 + 0.1 + 0.0) / 3
    assert list(found.values()) == pytest.approx([0.9 - mean, 0.1 - mean, -mean])


def test_equal_totals_teach_nothing_though_their_sums_differ_in_the_last_bit() -> None:
    terms = (RewardTerm(function="a.py:a", weight=0.1), RewardTerm(function="a.py:b", weight=0.2))
    third = RewardTerm(function="a.py:c", weight=0.3)
    turns = [turn(0, scores={"a": 1.0, "b": 1.0, "c": 0.0}), turn(1, scores={"a": 0.0, "b": 0.0, "c": 1.0})]
    assert 0.1 + 0.2 != 0.3
    assert weighed(turns, terms=(*terms, third)) == {}


@pytest.mark.parametrize("value", [None, "broken", "unfit"])
def test_what_is_not_judged_leaves_its_group_and_changes_no_other(value: Any) -> None:
    turns = [right(0), turn(1), turn(2)]
    odd = {"scores": {"correct": 1.0, "format": None}} if value is None else {"scores": {"correct": 1.0}}
    if value == "broken":
        odd["status"] = "broken"
    unfit = {"q.n3.t0": "too_long"} if value == "unfit" else {}
    terms = (*CORRECT, RewardTerm(function="format", weight=0.0))
    plain, _ = judged_groups(turns, {}, terms, Shaping())
    groups, left_out = judged_groups([*turns, right(3, **odd)], unfit, terms, Shaping())
    assert groups == plain
    assert left_out == {"not_judged" if value is None else "broken" if value == "broken" else "too_long": 1}


def two_turns() -> list[Graded]:
    """Rewards (0, 1), (1, 1), (0, 0) by a term of one's own."""
    rewards = [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0)]
    rows = [(index, place, value) for index, row in enumerate(rewards) for place, value in enumerate(row)]
    return [turn(index, place, scores={"mine": value}) for index, place, value in rows]


def test_credit_per_episode_turn_and_return() -> None:
    terms = (RewardTerm(function="a.py:mine"),)
    episode = weighed(two_turns(), terms=terms, advantage="group_mean")
    assert [episode.get(f"q.n{i}.t{t}", 0.0) for i in range(3) for t in range(2)] == [0, 0, 1, 1, -1, -1]
    by_turn = weighed(two_turns(), "turn", terms, advantage="group_mean")
    third = 1 / 3
    assert [by_turn[f"q.n{i}.t0"] for i in range(3)] == pytest.approx([-third, 2 * third, -third])
    assert [by_turn[f"q.n{i}.t1"] for i in range(3)] == pytest.approx([third, third, -2 * third])
    by_return = weighed(two_turns(), "return", terms, advantage="group_mean")
    assert [by_return.get(f"q.n{i}.t0", 0.0) for i in range(3)] == [0.0, 1.0, -1.0]
    assert [by_return[f"q.n{i}.t1"] for i in range(3)] == pytest.approx([third, third, -2 * third])


def test_episodes_of_different_length() -> None:
    """A third turn that one episode alone has is compared with nothing."""
    terms = (RewardTerm(function="a.py:mine"),)
    turns = [*two_turns(), turn(0, 2, scores={"mine": 5.0})]
    assert "q.n0.t2" not in weighed(turns, "turn", terms)
    found = weighed(turns, "episode", terms)
    assert found["q.n0.t2"] == found["q.n0.t0"] > 0
    mean = [found[f"q.n{i}.t0"] for i in range(3)]
    assert math.fsum(mean) == pytest.approx(0.0) and math.fsum(x * x for x in mean) == pytest.approx(3.0)


def test_weights_of_ones_own() -> None:
    groups, _ = judged_groups(two_turns(), {}, (RewardTerm(function="a.py:mine"),), Shaping())
    own = {"q.n0.t0": (0.0, 0.1), "q.n0.t1": (2.0, 0.0), "q.n1.t0": (0.0, 0.0)}
    found, left_out = credit(groups, weigh="mine.py:f", advantage="group_mean", own=own)
    assert [(one.id, one.advantage, one.kl) for one in found] == [("q.n0.t0", 0.0, 0.1), ("q.n0.t1", 2.0, 0.0)]
    assert left_out == {"zero_weight": 4}

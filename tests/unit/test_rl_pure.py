"""The on-policy stage's pure functions: stream, groups, replay."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sophia_mcore.errors import UsageError
from sophia_mcore.rl.groups import Graded, Weighed, advantages, soft_overlong
from sophia_mcore.rl.replay import draw, is_new_episode, replay
from sophia_mcore.rl.stream import batch_questions, rollout_seed, update_parts

VERDICTS = ("correct", "wrong", "no_answer", "timeout", "error")


def answer(index: int, verdict: str, question: str = "q", *, truncated: bool = False, tokens: int = 5) -> Graded:
    return Graded(
        id=f"{question}.n{index}",
        question_id=question,
        index=index,
        verdict=verdict,
        truncated=truncated,
        tokens=tokens,
    )  # type: ignore[arg-type]


def test_a_batch_never_asks_a_question_twice_and_an_epoch_asks_as_many_as_fit() -> None:
    ids = [f"q{number}" for number in range(23)]
    for epoch in range(3):
        asked = [q for batch in range(5) for q in batch_questions(ids, 5 * epoch + batch, 4, seed=3)]
        assert len(asked) == len(set(asked)) == 20
    left_out = [
        set(ids) - {q for batch in range(5) for q in batch_questions(ids, 5 * epoch + batch, 4, seed=3)}
        for epoch in range(6)
    ]
    assert len({frozenset(names) for names in left_out}) > 1  # not the same ones in every epoch
    assert batch_questions(ids, 7, 4, 3) != batch_questions(ids, 7, 4, 4)


def test_too_few_questions_are_named() -> None:
    with pytest.raises(UsageError, match=r"questions_per_batch = 4 is more than the 3 questions"):
        batch_questions(["a", "b", "c"], 0, 4, 0)


def test_updates_share_a_batch_without_rest() -> None:
    ids = [f"q{number}" for number in range(10)]
    parts = update_parts(ids, 2, 4, seed=0)
    assert [len(part) for part in parts] == [4, 4, 2]
    assert sorted(question for part in parts for question in part) == sorted(ids)
    assert parts != update_parts(ids, 3, 4, seed=0)


def test_seeds_differ_by_batch_question_and_index() -> None:
    seeds = {rollout_seed(0, batch, q, index) for batch in range(3) for q in ("a", "b") for index in range(4)}
    assert len(seeds) == 24


@pytest.mark.parametrize("right", range(1, 8))
def test_advantages_of_k_right_of_n(right: int) -> None:
    group = [answer(index, "correct" if index < right else "wrong") for index in range(8)]
    found, left_out = advantages(group)
    values = {weighed.id: weighed.advantage for weighed in found}
    assert values["q.n0"] == pytest.approx(math.sqrt((8 - right) / right))
    assert values["q.n7"] == pytest.approx(-math.sqrt(right / (8 - right)))
    assert sum(values.values()) == pytest.approx(0.0, abs=1e-9)
    assert sum(value**2 for value in values.values()) == pytest.approx(8.0)
    assert not left_out


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(VERDICTS), st.booleans(), st.integers(1, 30), st.sampled_from("abc")), max_size=30
    ),
    st.sampled_from(["wrong", "graded", "soft", "masked"]),
    st.randoms(use_true_random=False),
)
def test_every_answer_is_emitted_or_counted_and_order_does_not_matter(
    rows: list[tuple[str, bool, int, str]], overlong: str, shuffler: random.Random
) -> None:
    answers = [
        answer(index, verdict, question, truncated=truncated, tokens=tokens)
        for index, (verdict, truncated, tokens, question) in enumerate(rows)
    ]
    options = {"overlong": overlong, "max_tokens": 30, "overlong_cache": 10}
    found, left_out = advantages(answers, **options)  # type: ignore[arg-type]
    assert len(found) + left_out.total() == len(answers)
    again = list(answers)
    shuffler.shuffle(again)
    assert advantages(again, **options) == (found, left_out)  # type: ignore[arg-type]


def test_a_broken_answer_changes_no_other_advantage() -> None:
    group = [answer(0, "correct"), answer(1, "wrong"), answer(2, "wrong")]
    with_broken, counted = advantages([*group, answer(3, "timeout"), answer(4, "error")])
    assert with_broken == advantages(group)[0]
    assert counted == {"timeout": 1, "error": 1}


def test_groups_without_a_difference_teach_nothing() -> None:
    right = [answer(index, "correct", "all") for index in range(4)]
    wrong = [answer(index, "wrong", "none") for index in range(4)]
    alone = [answer(0, "correct", "one"), answer(1, "timeout", "one")]
    found, left_out = advantages([*right, *wrong, *alone])
    assert found == []
    assert left_out == {"all_right": 4, "all_wrong": 4, "too_few": 1, "timeout": 1}


def test_truncated_answers_by_rule() -> None:
    group = [answer(0, "correct"), answer(1, "correct", truncated=True), answer(2, "wrong")]
    by_rule = {
        rule: {w.id: w.advantage for w in advantages(group, overlong=rule)[0]}  # type: ignore[arg-type]
        for rule in ("wrong", "graded", "masked")
    }
    assert by_rule["wrong"]["q.n1"] < 0 < by_rule["graded"]["q.n1"]
    assert set(by_rule["masked"]) == {"q.n0", "q.n2"}
    assert by_rule["masked"]["q.n0"] == by_rule["wrong"]["q.n0"]  # it is in the mean all the same


def test_soft_overlong_is_continuous_and_ends_at_minus_one() -> None:
    values = [soft_overlong(tokens, 1000, 200) for tokens in range(1003)]
    assert all(abs(b - a) <= 1 / 200 + 1e-12 for a, b in pairwise(values))
    assert values[800] == 0.0
    assert values[1000] == values[1002] == -1.0


def weighed(count: int, values: tuple[float, ...] = (1.0,), name: str = "s") -> list[Weighed]:
    return [Weighed(f"{name}{index}", "q", values[index % len(values)]) for index in range(count)]


def test_replay_fills_up_and_keeps_every_fresh_answer() -> None:
    old, fresh = weighed(5, name="old"), [*weighed(3, name="new"), Weighed("zero", "q", 0.0)]
    chosen, buffer = replay(fresh, old, 10, 1.0, (0, "ssr", 1, 0))
    assert len(chosen) == 10
    assert chosen[:3] == fresh[:3]
    assert [w.id for w in buffer] == [*(f"old{i}" for i in range(5)), *(f"new{i}" for i in range(3))]
    assert replay(fresh, old, 10, 1.0, (0, "ssr", 1, 0)) == (chosen, buffer)
    assert replay(fresh, old, 10, 1.0, (0, "ssr", 1, 1))[0] != chosen
    assert replay(fresh, buffer, 10, 1.0, ("k",))[1] == buffer  # no answer is twice in the buffer


def test_replay_without_need_or_buffer() -> None:
    fresh = weighed(4)
    assert replay(fresh, [], 3, 1.0, ("k",))[0] == fresh
    assert replay([Weighed("zero", "q", 0.0)], [], 3, 1.0, ("k",)) == ([], [])


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_draws_follow_the_advantages(alpha: float) -> None:
    buffer = [Weighed(str(value), "q", value) for value in (0.5, -1.0, 2.0, -3.0)]
    count = 20_000
    drawn = Counter(w.id for w in draw(buffer, count, alpha, ("k", alpha.__repr__())))
    total = sum(abs(w.advantage) ** alpha for w in buffer)
    for w in buffer:
        share = abs(w.advantage) ** alpha / total
        assert abs(drawn[w.id] - count * share) < 4 * math.sqrt(count * share * (1 - share))


def test_an_episode_ends_by_questions() -> None:
    assert [b for b in range(40) if is_new_episode(b, 64, 1024)] == [0, 16, 32]
    assert [b for b in range(5) if is_new_episode(b, 1024, 1024)] == [0, 1, 2, 3, 4]
    assert [b for b in range(9) if is_new_episode(b, 48, 0)] == [0]

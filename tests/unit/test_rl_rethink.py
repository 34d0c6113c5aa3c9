"""Forced rethinking: which answers, where they are cut, what is kept. Tokens are reused, never encoded anew."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sophia_mcore.rl.rethink import (
    Continuation,
    Plan,
    Rule,
    cut_point,
    given_tokens,
    kept,
    plan_rethinking,
    tokens_before,
    waits,
)

PIECES = [
    "<think>",
    "2",
    " plus",
    " 3",
    " is 5.",
    "</think>",
    "\n\n",
    "The answer",
    " is ",
    "\\boxed{",
    "5",
    "}",
    "<end>",
]
END = PIECES.index("<end>")


def decode(ids: Sequence[int]) -> str:
    return "".join(PIECES[index] for index in ids)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>a</think>b", "</think>b"),
        ("<think>a</think>b </think> c", "</think> c"),  # the last one: what stands before is thought
        ("Sum.\n\nSo it is \\boxed{5}.", "\n\nSo it is \\boxed{5}."),
        ("One.\n\nTwo.\n\n**Final answer**: 5", "\n\n**Final answer**: 5"),
        ("\\boxed{5} on one line", None),
        ("no announcement", None),
        ("", None),
    ],
)
def test_cut_points(text: str, rest: str | None) -> None:
    offset = cut_point(text)
    assert (None if offset is None else text[offset:]) == rest


@given(st.lists(st.integers(0, len(PIECES) - 1), max_size=12), st.integers(0, 60))
def test_token_borders(ids: list[int], offset: int) -> None:
    count = tokens_before(offset, ids, decode)
    assert len(decode(ids[:count])) <= offset
    assert count == len(ids) or len(decode(ids[: count + 1])) > offset


def test_given_tokens_are_the_answers_own() -> None:
    ids = list(range(len(PIECES)))
    text = decode(ids[:-1])
    trigger = [1, 2]
    cut = given_tokens(ids, text, Plan(True, "questioning"), trigger, [END], decode)
    assert cut == [*ids[: PIECES.index("</think>")], *trigger]
    whole = given_tokens(ids, text, Plan(False, "questioning"), trigger, [END], decode)
    assert whole == [*ids[:-1], *trigger]
    nowhere = given_tokens([1, 2, 3, END], "2 plus 3", Plan(True, "questioning"), trigger, [END], decode)
    assert nowhere == [1, 2, 3, *trigger]
    assert given_tokens([END], "", Plan(True, "questioning"), trigger, [END], decode) == trigger


def test_shares_and_kinds() -> None:
    rule = Rule(share=0.65)
    names = [f"q{number}.n0" for number in range(4000)]
    plans = [plan_rethinking(name, True, 0, rule) for name in names]
    asked = [plan for plan in plans if plan is not None]
    assert abs(len(asked) / len(names) - 0.65) < 0.03
    assert abs(sum(plan.cut for plan in asked) / len(asked) - 0.5) < 0.04
    assert {plan.kind for plan in asked} == {"questioning", "verification"}
    wrong = [plan_rethinking(name, False, 0, rule) for name in names]
    assert {plan.kind for plan in wrong if plan is not None} == {"questioning", "correction"}
    assert [plan is None for plan in wrong] == [plan is None for plan in plans]
    assert not any(plan_rethinking(name, True, 0, Rule(share=0.0)) for name in names)
    assert all(plan_rethinking(name, True, 0, Rule(share=1.0)) for name in names)
    assert plans != [plan_rethinking(name, True, 1, rule) for name in names]


def test_what_is_kept() -> None:
    rule = Rule(share=1.0, least_tokens=3, most_tokens=10, most_waits=1)

    def one(name: str, *, right: bool = True, tokens: int = 5, text: str = "so it is 5") -> Continuation:
        return Continuation(id=name, question_id=name[0], right=right, tokens=tokens, text=text)

    found = kept(
        [
            one("a3"), one("a1"), one("a2"), one("b1", right=False), one("b2", tokens=2), one("b3", tokens=11),
            one("b4", text="Wait, wait, it is 5"), one("b5", text="Wait, it is 5"),
        ],
        rule,
    )  # fmt: skip
    assert found == ["a1", "a2", "b5"]


def test_words_of_doubt() -> None:
    assert waits("Wait. Await the waiter; wait! Alternatively, let me check.") == 4
    assert waits("") == 0

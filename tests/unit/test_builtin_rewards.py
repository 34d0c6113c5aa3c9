"""Values of the built-in rewards by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from sophia_mcore.environments import IMAGE, Ask, Message, Question, rewards
from sophia_mcore.environments.boxes import boxes_in, intersection_over_union, overlap
from sophia_mcore.environments.codec import BadValueError
from sophia_mcore.environments.places import placed
from sophia_mcore.pretrained.family import IMAGE_PLACE
from tests.support.episodes import episode, turn

QUESTION = Question(id="q", question="2 + 2?", answer="4")


def test_correct_is_the_last_turns_verdict() -> None:
    assert rewards.correct(episode("3", "4", right=True), QUESTION) == 1.0
    assert rewards.correct(episode(turn("4", right=True), turn("5")), QUESTION) == 0.0
    assert rewards.correct(episode(turn("4", right=True, finish_reason="length")), QUESTION) == 0.0
    assert rewards.correct(episode(turn("4", verdict="timeout")), QUESTION) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a\nb</think>It is 4.", 1.0), ("<think></think>4", 1.0), ("It is 4.", 0.0), ("<think>a</think>  ", 0.0),
        ("<think>a<think>b</think>4", 0.0), ("x<think>a</think>4", 0.0),
    ],
)  # fmt: skip
def test_format(text: str, value: float) -> None:
    assert rewards.format(episode(text), QUESTION) == value
    assert rewards.format(episode(turn(text, finish_reason="length")), QUESTION) == 0.0
    assert rewards.format(episode("b", "aaa"), QUESTION, pattern="a+") == 0.5


def test_equal_is_the_whole_reply() -> None:
    question = Question(id="q", question="?", answer="Yes")
    values = [rewards.equal(episode(text), question) for text in ("yes", " Yes\n", "Yes.", "<think></think>yes", "")]
    assert values == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert rewards.equal(episode("yes"), question, case=True) == 0.0


def test_length_among_right() -> None:
    group = [
        episode("x" * 10, right=True),
        episode("x" * 30, right=True),
        episode("x"),
        episode(turn("y", verdict="error")),
    ]
    found = rewards.length_among_right(group, QUESTION, strength=0.3)
    assert found == pytest.approx([1 + 0.3 * 0.5, 1 - 0.3 * 0.5, 0.0, None])
    assert rewards.length_among_right([episode("x"), episode("xx")], QUESTION) == [0.0, 0.0]


def test_overlap_is_the_best_matching() -> None:
    rng = random.Random(0)

    def box() -> tuple[float, float, float, float]:
        x, y = rng.uniform(0, 10), rng.uniform(0, 10)
        return x, y, x + rng.uniform(1, 8), y + rng.uniform(1, 8)

    for _ in range(50):
        found, gold = [box() for _ in range(rng.randint(1, 4))], [box() for _ in range(rng.randint(1, 4))]
        few, many = sorted((found, gold), key=len)
        best = max(
            sum(intersection_over_union(one, other) for one, other in zip(few, chosen, strict=True))
            for chosen in itertools.permutations(many, len(few))
        )
        assert overlap(found, gold) == pytest.approx(best / len(many))


def test_iou() -> None:
    question = Question(id="q", question="?", answer="[[0, 0, 2, 2], [4, 4, 6, 6]]", answer_type="box")
    assert rewards.iou(episode("<think>[9, 9, 10, 10]</think>[4,4,6,6] and [0, 0, 2, 2]"), question) == 1.0
    assert rewards.iou(episode("[1, 0, 3, 2]"), question) == pytest.approx((1 / 3) / 2)
    assert rewards.iou(episode("[1, 0, 3, 2]"), question, at_least=0.5) == 0.0
    assert rewards.iou(episode("nowhere"), question) == 0.0 and boxes_in("[1, 2, 3]") == []
    assert rewards.iou(episode("[0,0,2,2]" * 300), question) == 0.0
    with pytest.raises(ValueError, match="the answer of question 'q' holds no box"):
        rewards.iou(episode("[0, 0, 1, 1]"), QUESTION)


def test_judge() -> None:
    def said(text: str, right: bool = True) -> float | None:
        spoken = episode(turn("4", right), turn(text, to="judge"))
        return rewards.judge(spoken, QUESTION)

    assert [said("Fine.\nScore: 7"), said("score: 3 ... **Score: 10**"), said("Score: 11"), said("good"), said("")] == [
        0.7, 1.0, None, None, None,
    ]  # fmt: skip
    assert said("<think>Score: 1</think> none") is None
    assert rewards.judge(episode("5"), QUESTION, only_if_right=True) == 0.0
    assert rewards.judge_ask(episode("5"), QUESTION, only_if_right=True) is None
    ask = rewards.judge_ask(episode("my {question} reply"), QUESTION, best=5.0)
    assert ask is not None and ask.to == "judge" and "my {question} reply" in ask.messages[0].text
    assert '"Score: N" with N from 0 (worthless) to 5' in ask.messages[0].text


def test_consistent() -> None:
    right = turn("<think>2 and 2 make 4.</think>4", right=True)
    assert rewards.consistent(episode(right, turn("4", right=True, to="reader")), QUESTION) == 1.0
    assert rewards.consistent(episode(right, turn("5", to="reader")), QUESTION) == 0.0
    assert rewards.consistent(episode(right), QUESTION) is None and rewards.consistent(episode("5"), QUESTION) == 0.0
    ask = rewards.consistent_ask(episode(right), QUESTION)
    assert ask is not None and "2 and 2 make 4." in ask.messages[0].text and not ask.images


def test_places_of_images() -> None:
    two = (b"a", b"b")
    history = (
        Message("user", f"{IMAGE} first {IMAGE}"),
        Message("assistant", f"I saw {IMAGE}"),
        Message("user", "go on"),
    )
    found = placed(Ask(messages=history, images=two), "Think.").messages
    assert [one.role for one in found] == ["system", "user", "assistant", "user"]
    assert found[1].text.count(IMAGE_PLACE) == 2 and found[2].text == f"I saw {IMAGE}"
    plain = placed(Ask.user("look <IMG_CONTEXT>", (b"a",)), "").messages
    assert plain == (Message("user", f"{IMAGE_PLACE}\nlook "),)
    with pytest.raises(BadValueError, match="asks with 2 images and 1 places <image>"):
        placed(Ask.user(f"{IMAGE}", two))
    with pytest.raises(BadValueError, match="without a user message"):
        placed(Ask(messages=(Message("system", "x"),), images=two))
    assert placed(Ask(messages=(Message("system", ""), Message("user", "x"))), "Think.").messages == (
        Message("user", "x"),
    )
    assert placed(Ask.user("x", to="judge"), "Think.").messages == (Message("user", "x"),)

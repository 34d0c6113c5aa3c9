"""The built-in rewards. Each has the form of a reward of one's own, and shows how to write one.

Of one episode: ``NAME(episode, question, *, options) -> float | tuple of floats, one per turn of the policy | None``.
Of all answers to a question: ``NAME(group, question, *, options) -> one float or None per episode``.
None: not judged; the episode then leaves its group, as it would with a verdict that is broken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sophia_mcore.environments.boxes import boxes_in, overlap
from sophia_mcore.environments.types import Ask, Episode
from sophia_mcore.records import BROKEN, END_OF_THOUGHT, THOUGHT, Question, after_thought

_SCORE = re.compile(r"score\s*[:=]\s*[*_]*\s*(-?\d+(?:\.\d+)?)", re.IGNORECASE)


def correct(episode: Episode, question: Question) -> float | None:
    """1 when the policy's last turn answers the question rightly, else 0 (docs/grading.md)."""
    return None if episode.last.verdict in BROKEN else float(episode.right)


def format(episode: Episode, question: Question, *, pattern: str = r"<think>.*?</think>.*\S.*") -> float:
    """1 when the whole reply (of each turn: the mean) fits the regular expression, in which a dot is any character.

    The thought may be opened once only, so that one that is opened again inside does not fit by accident.
    """
    turns = episode.policy_turns
    fitting = [
        turn.finish_reason == "stop"
        and turn.text.count(THOUGHT) <= 1
        and re.fullmatch(pattern, turn.text.strip(), re.DOTALL) is not None
        for turn in turns
    ]
    return sum(fitting) / len(turns)


def equal(episode: Episode, question: Question, *, case: bool = False) -> float:
    """1 when the whole reply is the answer, without a word more (arXiv 2503.16188); ``case``: capitals count."""
    said, wanted = episode.text.strip(), question.answer.strip()
    if not case:
        said, wanted = said.casefold(), wanted.casefold()
    return float(said == wanted and episode.last.finish_reason == "stop")


def length_among_right(group: Sequence[Episode], question: Question, *, strength: float = 0.3) -> list[float | None]:
    """r (1 - strength (T - mean T) / mean T) with T the tokens of an answer and the mean over the right ones.

    Wrong answers stay 0, so that no wrong answer is better for being short (compare arXiv 2412.21187).
    """
    right = [episode.tokens for episode in group if correct(episode, question) == 1.0]
    mean = sum(right) / len(right) if right else 0.0
    found: list[float | None] = []
    for episode in group:
        value = correct(episode, question)
        if value and mean:
            value *= 1.0 - strength * (episode.tokens - mean) / mean
        found.append(value)
    return found


def iou(episode: Episode, question: Question, *, at_least: float = 0.0) -> float:
    """Mean overlap (intersection over union) of the boxes [x1, y1, x2, y2] of reply and answer.

    Boxes are matched one to one so that the sum is largest (Hungarian method); what is missing or too much counts 0.
    ``at_least``: a smaller overlap counts 0. Boxes in a thought are not looked at.
    """
    gold = boxes_in(question.answer)
    if not gold:
        raise ValueError(f"the answer of question {question.id!r} holds no box [x1, y1, x2, y2]")
    return overlap(boxes_in(after_thought(episode.text)), gold, at_least)


def step(episode: Episode, question: Question, *, name: str) -> tuple[float, ...]:
    """What the environment's step has called ``name``, for each turn; 0 where it has said nothing."""
    return tuple(turn.rewards.get(name, 0.0) for turn in episode.policy_turns)


def consistent(episode: Episode, question: Question, *, helper: str = "reader") -> float | None:
    """1 when the answer is right and the reader, who sees the thought and not the image, gives a right one too
    (arXiv 2504.12680).
    """
    if correct(episode, question) is None:
        return None
    if not episode.right:
        return 0.0
    turn = next((turn for turn in reversed(episode.turns) if turn.to == helper), None)
    return None if turn is None or turn.verdict in BROKEN else float(turn.right)


def consistent_ask(episode: Episode, question: Question, *, helper: str = "reader") -> Ask | None:
    """The question and the thought without its conclusion; only of a right answer."""
    if not episode.right:
        return None
    thought = episode.text.rpartition(END_OF_THOUGHT)[0].replace(THOUGHT, "").strip()
    return Ask.user(
        f"{question.question}\n\nNotes by somebody who has seen the image:\n{thought}\n\n"
        "Answer the question from these notes alone. Put the final answer into \\boxed{}.",
        to=helper,
    )


def judge(
    episode: Episode, question: Question, *, helper: str = "judge", best: float = 10.0, only_if_right: bool = False,
    prompt: str = "",
) -> float | None:  # fmt: skip
    """The score that the judge gives, from 0 to ``best``, as a share; None when its reply holds no such score.

    ``only_if_right``: 0 for a wrong answer, without asking (compare arXiv 2506.13705).
    """
    if only_if_right and not episode.right:
        return 0.0 if episode.last.verdict not in BROKEN else None
    scores = _SCORE.findall(after_thought(episode.said(helper) or ""))
    value = float(scores[-1]) if scores else -1.0
    return value / best if 0.0 <= value <= best else None


def judge_ask(
    episode: Episode, question: Question, *, helper: str = "judge", best: float = 10.0, only_if_right: bool = False,
    prompt: str = "",
) -> Ask | None:  # fmt: skip
    """What the judge is asked; ``prompt`` is a text of one's own with {question}, {answer} and {reply} in it."""
    if only_if_right and not episode.right:
        return None
    text = prompt or _JUDGE
    for name, value in (("best", f"{best:g}"), ("question", question.question), ("answer", question.answer)):
        text = text.replace(f"{{{name}}}", value)
    return Ask.user(text.replace("{reply}", episode.text), to=helper)


_JUDGE = (
    "Question:\n{question}\n\nReference answer: {answer}\n\nReply of a student:\n{reply}\n\n"
    "How good is the reply? Judge whether its reasoning is sound and supports its answer. "
    'The last line of your judgement is "Score: N" with N from 0 (worthless) to {best} (perfect).'
)

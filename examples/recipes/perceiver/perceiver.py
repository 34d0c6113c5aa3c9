"""A frozen perceiver describes the image, the policy reasons from the text; a reader checks that the thought carries
the answer (compare Embodied-R, arXiv 2504.12680).
"""

from __future__ import annotations

import re
from typing import Any

from sophia_mcore.environments import Ask, Episode, Question, Reply, Step

_SEEN = re.compile(r"(?:first|second|third|fourth) \d")


def start(question: Question, images: tuple[bytes, ...], seed: int) -> Step:
    """The perceiver is asked first; it alone sees the image."""
    return Step({"question": question.question}, Ask.user("Describe the image.", images, to="perceiver"))


def step(state: dict[str, Any], reply: Reply, images: tuple[bytes, ...]) -> Step:
    """What the perceiver says is the policy's prompt; what the policy says is the answer."""
    if "description" in state:
        return Step(state)
    return Step({**state, "description": reply.text}, Ask.user(prompt(reply.text, state["question"])))


def prompt(description: str, question: str) -> str:
    """What a model is asked that cannot see."""
    return f"Description: {description}\nQuestion: {question}"


def reading(episode: Episode, question: Question) -> Ask | None:
    """What the thought says to be seen, without its conclusion, as a description for the reader; of a right answer."""
    seen = list(dict.fromkeys(_SEEN.findall(episode.text.partition("</think>")[0])))
    if not episode.right or not seen:
        return None
    return Ask.user(prompt(f"The image shows {', '.join(seen)}.", question.question), to="reader")


def consistent(episode: Episode, question: Question) -> float | None:
    """1 when the answer is right and the reader comes to it from the thought alone."""
    turn = next((turn for turn in episode.turns if turn.to == "reader"), None)
    if turn is None:
        return 0.0
    return None if turn.verdict in ("timeout", "error") else float(turn.right)

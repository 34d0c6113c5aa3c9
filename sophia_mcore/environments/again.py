"""Two attempts: the question, and once more with the first answer in sight (compare SCoRe, arXiv 2409.12917)."""

from __future__ import annotations

from typing import Any

from sophia_mcore.environments.types import Ask, Reply, Step
from sophia_mcore.pretrained.family import Message
from sophia_mcore.records import Question

_PROMPT = "Look at the image again and check your answer. If there is a mistake, correct it. Answer the question anew."


def start(question: Question, images: tuple[bytes, ...], seed: int) -> Step:
    """Ask the question."""
    return Step(state={"question": question.question}, ask=Ask.user(question.question, images))


def step(state: dict[str, Any], reply: Reply, images: tuple[bytes, ...], *, prompt: str = "") -> Step:
    """After the first answer ask again; after the second the episode is over."""
    if "first" in state:
        return Step(state)
    messages = (
        Message("user", state["question"]),
        Message("assistant", reply.text),
        Message("user", prompt or _PROMPT),
    )
    return Step({**state, "first": reply.text}, Ask(messages=messages, images=images))

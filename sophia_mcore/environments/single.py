"""The environment of one turn: the question as it stands, and its answer."""

from __future__ import annotations

from sophia_mcore.environments.types import Ask, Reply, Step
from sophia_mcore.records import Question


def start(question: Question, images: tuple[bytes, ...], seed: int) -> Step:
    """Ask the question."""
    return Step(state=None, ask=Ask.user(question.question, images))


def step(state: None, reply: Reply) -> Step:
    """The answer ends the episode."""
    return Step(state=None)

"""Two attempts, and SCoRe's two ways to weigh them (arXiv 2409.12917)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from sophia_mcore.environments import Ask, Episode, Question, Reply, Step, Weight


def start(question: Question, images: tuple[bytes, ...], seed: int, *, pixels: int = 8) -> Step:
    """The question with its image reduced to ``pixels`` x ``pixels``."""
    text = question.question
    return Step({"question": text}, Ask.user(text, (reduced(images[0], pixels),)))


def step(state: dict[str, Any], reply: Reply, images: tuple[bytes, ...]) -> Step:
    """After the first answer ask again, with the first answer in sight and the image in full; the second one counts."""
    if "first" in state:
        return Step(state)
    return Step({**state, "first": reply.text}, Ask.user(second_prompt(state["question"], reply.text), images))


def second_prompt(question: str, first: str) -> str:
    """What is asked after a first answer."""
    return f"{question}\n{first}\nWait, check again. {question}"


def reduced(data: bytes, pixels: int) -> bytes:
    """An image that has lost detail, in its old size."""
    with Image.open(io.BytesIO(data)) as picture:
        small = picture.resize((pixels, pixels), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BILINEAR)
    file = io.BytesIO()
    small.save(file, "PNG")
    return file.getvalue()


def improvement(episode: Episode, question: Question, *, alpha: float = 10.0) -> tuple[float, ...]:
    """Right or wrong for each attempt; the second gets alpha times what it is better than the first."""
    first, second = (float(right) for right in (*episode.rights, False, False)[:2])
    return (first, second + alpha * (second - first))[: len(episode.policy_turns)]


def second_only(group: Sequence[Episode], *, kl: float = 0.1) -> list[list[Weight]]:
    """Stage I: learn from the second attempt alone, and keep the first one where the starting model has it."""
    mean = sum(one.rewards[-1] for one in group) / len(group)
    return [[Weight(0.0, kl) for _ in one.policy_turns[:-1]] + [Weight(one.rewards[-1] - mean)] for one in group]

"""SCoRe's two ways to weigh two attempts (arXiv 2409.12917)."""

from __future__ import annotations

from collections.abc import Sequence

from sophia_mcore.environments import Episode, Question, Weight


def improvement(episode: Episode, question: Question, *, alpha: float = 10.0) -> tuple[float, ...]:
    """Right or wrong for each attempt; the second gets alpha times what it is better than the first."""
    first, second = (float(right) for right in (*episode.rights, False, False)[:2])
    return (first, second + alpha * (second - first))[: len(episode.policy_turns)]


def second_only(group: Sequence[Episode], *, kl: float = 0.1) -> list[list[Weight]]:
    """Stage I: learn from the second attempt alone, and keep the first one where the starting model has it."""
    mean = sum(one.rewards[-1] for one in group) / len(group)
    return [[Weight(0.0, kl) for _ in one.policy_turns[:-1]] + [Weight(one.rewards[-1] - mean)] for one in group]

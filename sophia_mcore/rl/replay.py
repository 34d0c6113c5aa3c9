"""Selective sample replay, Algorithm 1 of VL-Rethinker (arXiv 2504.08837), as one pure function.

A buffer keeps the answers whose advantage is not 0. Where an update's own answers are too few, the rest is drawn from
the buffer with probability proportional to |advantage| ** alpha (eq. 1), with replacement. A drawn answer keeps its
advantage and the log-probs of the policy that it was weighed under.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from sophia_mcore.rl.groups import Weighed

Key = tuple[str | int, ...]  # what the draws depend on: run seed, batch, update


def replay(
    fresh: Sequence[Weighed], buffer: Sequence[Weighed], wanted: int, alpha: float, key: Key
) -> tuple[list[Weighed], list[Weighed]]:
    """(answers of the update, buffer afterwards).

    Every answer of ``fresh`` with an advantage is in the update once, plus its draws, and enters the buffer before the
    draws (line 8). The update has ``wanted`` answers unless the buffer is empty, or ``fresh`` alone has more. The same
    ``key`` gives the same draws on any machine.
    """
    effective = [answer for answer in fresh if answer.advantage != 0.0 or answer.kl != 0.0]
    known = {answer.id for answer in buffer}
    buffer = [*buffer, *(answer for answer in effective if answer.id not in known)]
    missing = max(0, wanted - len(effective))
    if not missing or not buffer:
        return effective, buffer
    return [*effective, *draw(buffer, missing, alpha, key)], buffer


def draw(buffer: Sequence[Weighed], count: int, alpha: float, key: Key) -> list[Weighed]:
    """``count`` answers of ``buffer``, each with probability |advantage| ** alpha / sum (eq. 1; alpha 0: uniform)."""
    weights = [abs(answer.advantage) ** alpha for answer in buffer]
    total = math.fsum(weights)
    borders = [partial / total for partial in accumulate(weights)]
    last = len(buffer) - 1  # rounding may leave the last border a little below 1
    return [buffer[min(bisect_right(borders, _uniform((*key, number))), last)] for number in range(count)]


def _uniform(key: Key) -> float:
    """A number in [0, 1) that depends on ``key`` alone."""
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in key).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def is_new_episode(batch: int, questions_per_batch: int, episode_questions: int) -> bool:
    """Whether the buffer is emptied before ``batch``: the count of sampled questions has crossed a multiple of
    ``episode_questions`` since the batch before (0: the buffer is never emptied).

    >>> [batch for batch in range(9) if is_new_episode(batch, 48, 192)]
    [0, 4, 8]
    """
    if batch == 0:
        return True
    if not episode_questions:
        return False
    before, now = (number * questions_per_batch // episode_questions for number in (batch - 1, batch))
    return now > before

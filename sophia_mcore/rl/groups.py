"""From the graded answers of a batch to advantages: groups, rewards, what is left out and why. Pure functions.

A group is the answers to one question of one batch. It is found by the question's identifier, never by its text: the
same text under another image is another question.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sophia_mcore.environments.terms import Value
from sophia_mcore.records import BROKEN, VerdictName
from sophia_mcore.score.advantage import group_weights
from sophia_mcore.score.reward import outcome

Overlong = Literal["wrong", "graded", "soft", "masked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """A sampled answer as the advantages see it. ``tokens``: sampled tokens, end token included."""

    id: str
    question_id: str
    index: int
    verdict: VerdictName
    truncated: bool
    tokens: int
    turn: int = 0  # place among the turns of its episode
    scores: Mapping[str, Value] = field(default_factory=dict)  # values of the reward's terms
    status: str = "done"  # or "cut_off", "broken"
    why: str = ""

    def right(self, overlong: Overlong) -> bool:
        """Whether the answer counts as right: a truncated one does only where ``overlong`` is "graded"."""
        return outcome(self.verdict, self.truncated and overlong != "graded") == 1.0


@dataclass(frozen=True, slots=True)
class Weighed:
    """An answer with its advantage."""

    id: str
    question_id: str
    advantage: float
    kl: float = 0.0  # weight of its own k3 term, beside rl.objective.kl


def soft_overlong(tokens: int, limit: int, cache: int) -> float:
    """Reward shaping of long answers, eq. 13 of DAPO (arXiv 2503.14476): 0 up to limit - cache, then down to -1.

    >>> [soft_overlong(tokens, 100, 20) for tokens in (80, 90, 100, 101)]
    [0.0, -0.5, -1.0, -1.0]
    """
    if tokens <= limit - cache:
        return 0.0
    return (limit - cache - tokens) / cache if tokens <= limit else -1.0


def advantages(
    answers: Iterable[Graded],
    *,
    advantage: str = "group_normalized",
    overlong: Overlong = "wrong",
    max_tokens: int = 0,
    overlong_cache: int = 0,
) -> tuple[list[Weighed], Counter[str]]:
    """The answers that training uses, ordered by question and index, and how many are left out for which reason.

    An answer whose verdict is broken (timeout, error) leaves its group before mean and deviation are formed. A group
    with fewer than two answers left, or whose answers are all right or all wrong, teaches nothing and is left out:
    that is decided by counting verdicts, never by a deviation or a shaped reward. ``overlong``: "wrong" counts a
    truncated answer as wrong, "graded" by its verdict, "soft" as wrong with ``soft_overlong`` added to every reward,
    "masked" as wrong in the mean but without training on it.

    The order of ``answers`` does not matter. Counted reasons and emitted answers sum to all answers.
    """
    groups: dict[str, list[Graded]] = defaultdict(list)
    for answer in answers:
        groups[answer.question_id].append(answer)
    found: list[Weighed] = []
    left_out: Counter[str] = Counter()
    for question in sorted(groups):
        group = sorted(groups[question], key=lambda answer: (answer.index, answer.id))
        judged = [answer for answer in group if answer.verdict not in BROKEN]
        left_out.update(answer.verdict for answer in group if answer.verdict in BROKEN)
        if len(judged) < 2:
            left_out["too_few"] += len(judged)
            continue
        right = [answer.right(overlong) for answer in judged]
        if all(right) or not any(right):
            left_out["all_right" if all(right) else "all_wrong"] += len(judged)
            continue
        rewards = [float(value) for value in right]
        if overlong == "soft":
            rewards = [
                reward + soft_overlong(answer.tokens, max_tokens, overlong_cache)
                for reward, answer in zip(rewards, judged, strict=True)
            ]
        for answer, value in zip(judged, group_weights(rewards, advantage), strict=True):
            if answer.truncated and overlong == "masked":
                left_out["masked"] += 1
            else:
                found.append(Weighed(answer.id, question, value))
    return found, left_out

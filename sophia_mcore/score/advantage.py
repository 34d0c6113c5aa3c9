"""Rewards of all K x N trajectories of a question as weights, one pass over small numbers before any text is read."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sophia_mcore.config.schema import Objective, Reward
from sophia_mcore.records import Verdict
from sophia_mcore.score.reward import BROKEN


@dataclass(frozen=True, slots=True)
class Scored:
    """A trajectory as the weights see it."""

    id: str
    question_id: str
    reward: float
    fresh: bool = False  # the policy's own


def rewards(
    verdicts: Iterable[Verdict], truncated: Mapping[str, bool], objective: Objective, config: Reward
) -> tuple[list[Scored], Counter[str]]:
    """Reward of each trajectory: 1 if right and not cut off (eq. 4), with objective.reward = "filtered" only if its
    caption's visual reward exceeds alpha too (eqs. 5, 6 without the shortest rule); else 0.

    `truncated` tells by trajectory id whether it ended at the token limit. Trajectories that could not be judged
    (timeout, error) are left out and counted, as are verdicts on unknown trajectories.
    """
    dropped: Counter[str] = Counter()
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    judged: list[Verdict] = []
    for verdict in verdicts:
        if verdict.trajectory_id not in truncated:
            dropped["no_trajectory"] += 1
        elif verdict.verdict in BROKEN:
            dropped[verdict.verdict] += 1
            if config.broken == "not_correct":
                right[verdict.question_id, verdict.caption_id].append(False)
        else:
            judged.append(verdict)
            right[verdict.question_id, verdict.caption_id].append(verdict.verdict == "correct")
    found = []
    for verdict in judged:
        outcomes = right[verdict.question_id, verdict.caption_id]
        good = verdict.verdict == "correct" and not truncated[verdict.trajectory_id]
        if objective.reward == "filtered":
            good = good and sum(outcomes) / len(outcomes) > config.alpha
        found.append(Scored(verdict.trajectory_id, verdict.question_id, float(good)))
    return found, dropped


def group_weights(values: Sequence[float], advantage: str | None) -> list[float]:
    """Weights of one question's trajectories from their rewards, over the whole group.

    reward: R; signed: 2 R - 1; group_mean: R - mean; group_normalized: (R - mean) / std (population std; all 0 where
    all rewards are equal).

    >>> group_weights([1.0, 0.0, 0.0, 1.0], "group_normalized")
    [1.0, -1.0, -1.0, 1.0]
    """
    if advantage == "signed":
        return [2.0 * value - 1.0 for value in values]
    if advantage not in ("group_mean", "group_normalized"):
        return list(values)
    mean = sum(values) / len(values)
    centred = [value - mean for value in values]
    if advantage == "group_mean":
        return centred
    std = (sum(value * value for value in centred) / len(values)) ** 0.5
    return [value / std if std else 0.0 for value in centred]


def weigh(scored: Iterable[Scored], objective: Objective, seed: int) -> tuple[dict[str, float], Counter[str]]:
    """Weight by trajectory id of those that training uses, and why the others are not used.

    A group is the stored trajectories of a question, or the policy's own; with `loss.one_group` both together, so that
    stored right answers weigh more where the policy fails. A weight of 0 teaches nothing and is left out, unless
    `loss.learns_from_zero`. Of more stored ones than objective.trajectories_per_question, right and wrong ones are
    drawn in balance; the draw depends on `seed` and the ids alone.
    """
    groups: dict[tuple[str, bool], list[Scored]] = defaultdict(list)
    for row in scored:
        groups[row.question_id, row.fresh and not objective.loss.one_group].append(row)
    weights: dict[str, float] = {}
    dropped: Counter[str] = Counter()
    for question in sorted(groups):
        group = sorted(groups[question], key=lambda row: row.id)
        own = dict(
            zip((r.id for r in group), group_weights([r.reward for r in group], objective.advantage), strict=True)
        )
        useful = [row for row in group if own[row.id] != 0.0 or objective.loss.learns_from_zero]
        dropped["zero_weight"] += len(group) - len(useful)
        stored, own_answers = ([row for row in useful if row.fresh is fresh] for fresh in (False, True))
        chosen = [*_balanced(stored, objective.trajectories_per_question, seed), *own_answers]
        dropped["not_drawn"] += len(useful) - len(chosen)
        weights |= {row.id: own[row.id] for row in chosen}
    return weights, +dropped


def _balanced(group: Sequence[Scored], limit: int | None, seed: int) -> Sequence[Scored]:
    if limit is None or len(group) <= limit:
        return group
    drawn = sorted(group, key=lambda row: hashlib.sha256(f"{seed}\n{row.id}".encode()).digest())
    right = [row for row in drawn if row.reward > 0]
    wrong = [row for row in drawn if row.reward <= 0]
    of_right = min(len(right), max((limit + 1) // 2, limit - len(wrong)))
    return [*right[:of_right], *wrong[: limit - of_right]]

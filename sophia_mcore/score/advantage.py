"""Weights from rewards: what an objective multiplies each trajectory's terms with. Pure functions."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from sophia_mcore.score.reward import Scored


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


def weigh(
    scored: Iterable[Scored],
    advantage: str | None,
    seed: int,
    *,
    one_group: bool = False,
    keep_zero: bool = False,
    limit: int | None = None,
) -> tuple[dict[str, float], Counter[str]]:
    """Weight by trajectory id of those that training uses, and why the others are not used.

    A group is the reasoner's trajectories of a question, or the policy's own; with ``one_group`` both together (arXiv
    2504.14945), so that stored right answers weigh more where the policy fails. A weight of 0 teaches nothing and is
    left out, unless ``keep_zero``. Of more stored ones of a question than ``limit``, right and wrong ones are drawn in
    balance; the draw depends on ``seed`` and the ids alone.
    """
    groups: dict[tuple[str, bool], list[Scored]] = defaultdict(list)
    for row in scored:
        groups[row.question_id, row.source == "policy" and not one_group].append(row)
    weights: dict[str, float] = {}
    dropped: Counter[str] = Counter()
    for question in sorted(groups):
        group = sorted(groups[question], key=lambda row: row.id)
        own = dict(zip((row.id for row in group), group_weights([row.reward for row in group], advantage), strict=True))
        useful = [row for row in group if keep_zero or own[row.id] != 0.0]
        dropped["zero_weight"] += len(group) - len(useful)
        stored = [row for row in useful if row.source == "reasoner"]
        chosen = [*_balanced(stored, limit, seed), *(row for row in useful if row.source == "policy")]
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

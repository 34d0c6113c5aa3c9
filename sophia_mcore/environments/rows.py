"""Stored turns as the functions of episodes see them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sophia_mcore.environments.codec import messages_of
from sophia_mcore.environments.terms import from_json
from sophia_mcore.environments.types import POLICY, Episode, Turn
from sophia_mcore.records import Question, Rollout, rollout_id


def episode_of(turns: Sequence[Rollout], question: Question, rewards: Mapping[str, float] | None = None) -> Episode:
    """The rows of an episode, in order. ``rewards``: the weighted reward of each turn of the policy, by its id."""
    scores: dict[str, list[float | None]] = {}
    for one in turns:
        for label, value in from_json(one.scores).items():
            scores.setdefault(label, []).append(value if not isinstance(value, list) else math.fsum(value))
    first = turns[0]
    return Episode(
        id=rollout_id(first.question_id, first.batch, first.index),
        question_id=first.question_id,
        index=first.index,
        turns=tuple(
            _turn(one, question, (rewards or {}).get(one.id, 0.0))
            for one in turns
            if one.asked != POLICY or one.token_ids
        ),
        status=first.status,  # type: ignore[arg-type]
        scores={label: _sum(values) for label, values in scores.items()},
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def _turn(row: Rollout, question: Question, reward: float) -> Turn:
    asked: dict[str, Any] = {"messages": [["user", question.question]]}
    if row.prompt:
        asked = json.loads(row.prompt)
    return Turn(
        to=row.asked,
        text=row.text,
        messages=messages_of(asked["messages"]),
        images=tuple(asked.get("images", question.images)),
        tokens=len(row.token_ids) - row.given,
        finish_reason=row.finish_reason,
        verdict=row.verdict,
        extracted=row.extracted,
        rewards=json.loads(row.step_rewards) if row.step_rewards else {},
        reward=reward,
    )

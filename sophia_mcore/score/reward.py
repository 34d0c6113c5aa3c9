"""Rewards and selection as pure functions (method: eqs. 4-6 of arXiv 2507.16814). They stand nowhere else."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from sophia_mcore.config.schema import Reward
from sophia_mcore.records import BROKEN, TrajectorySource, Verdict, VerdictName

PairKey = tuple[str, str]  # (question id, caption id)
_ROUNDING = 1e-9  # 0.7 + 0.2 + 0.1 is a little less than 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trajectory with its verdict, as rewards and selection see it."""

    id: str
    question_id: str
    caption_id: str  # "": the policy's own, written from the image
    length: int  # tokens of the model that wrote it
    truncated: bool
    verdict: VerdictName
    source: TrajectorySource = "reasoner"
    by_terms: bool = False  # whether R(y) is ``total`` instead of the verdict
    total: float | None = None  # the weighted total of the reward's terms; None: not judged


@dataclass(frozen=True, slots=True)
class Scored:
    """A trajectory that could be judged, with its reward."""

    id: str
    question_id: str
    reward: float
    source: TrajectorySource = "reasoner"


@dataclass(frozen=True)
class Selection:
    """Ids of the kept trajectories, ordered by question and rank, and why the others were dropped."""

    kept: tuple[str, ...]
    dropped: Counter[str]


def outcome(verdict: VerdictName, truncated: bool = False) -> float:
    """R(y) of eq. 4: 1.0 for "correct", else 0.0. A trajectory that was cut off has no answer."""
    return 1.0 if verdict == "correct" and not truncated else 0.0


def reward_of(candidate: Candidate) -> float | None:
    """R(y) of a candidate: its outcome, or the total of the reward's terms; None where it could not be judged."""
    if candidate.by_terms:
        return candidate.total
    return None if candidate.verdict in BROKEN else outcome(candidate.verdict, candidate.truncated)


def visual_rewards(
    verdicts: Iterable[Verdict | Candidate],
    broken: Literal["not_correct", "left_out"] = "not_correct",
    per_caption: int = 0,
) -> dict[PairKey, float]:
    """R(c) of eq. 5: the mean outcome of a caption's trajectories, for each question asked about it.

    ``broken``: whether a timeout or error counts as not correct or is left out of the mean (a pair with no other
    verdict then has reward 0). The order of the verdicts does not matter: counts are integers. Of ``per_caption``
    trajectories those that were not sampled (``score.early_stop``) count as not correct: R(c) is at least that. Where
    the outcome is the total of the reward's terms, what they have not judged is left out in any case, and a pair of
    which nothing was judged has no reward.
    """
    correct: Counter[PairKey] = Counter()
    judged: Counter[PairKey] = Counter()
    stored: Counter[PairKey] = Counter()
    totals: dict[PairKey, list[float]] = {}
    for verdict in verdicts:
        pair = (verdict.question_id, verdict.caption_id)
        if isinstance(verdict, Candidate) and verdict.by_terms:
            if verdict.total is not None:
                totals.setdefault(pair, []).append(verdict.total)
            continue
        stored[pair] += 1
        correct[pair] += verdict.verdict == "correct"
        judged[pair] += broken == "not_correct" or verdict.verdict not in BROKEN
    for pair, count in stored.items():
        judged[pair] += max(0, per_caption - count)
    by_verdict = {pair: correct[pair] / count if count else 0.0 for pair, count in judged.items()}
    return by_verdict | {pair: math.fsum(found) / len(found) for pair, found in totals.items()}


def trajectory_rewards(
    candidates: Iterable[Candidate], reward: Literal["outcome", "filtered"], config: Reward
) -> tuple[list[Scored], Counter[str]]:
    """The reward of each trajectory, for objectives that compare right ones with wrong ones; in the order given.

    ``outcome``: R(y) (eq. 4). ``filtered``: R(y) where the caption's reward exceeds ``config.alpha`` (eqs. 5 and 6
    without the shortest rule), else 0; the policy's own trajectories have no caption and keep R(y). Those that could
    not be judged (timeout, error) are left out and counted.
    """
    listed = list(candidates)
    captions = visual_rewards((c for c in listed if c.caption_id), config.broken) if reward == "filtered" else {}
    found = []
    left_out: Counter[str] = Counter()
    for candidate in listed:
        value = reward_of(candidate)
        if value is None:
            left_out["not_judged" if candidate.by_terms else candidate.verdict] += 1
            continue
        if reward == "filtered" and candidate.caption_id and not _caption_passes(candidate, captions, config):
            value = 0.0
        found.append(Scored(candidate.id, candidate.question_id, value, candidate.source))
    return found, left_out


def select(candidates: Iterable[Candidate], rewards: Mapping[PairKey, float], config: Reward, seed: int) -> Selection:
    """The dataset reward of eq. 6: per question the ``config.keep`` shortest trajectories that qualify.

    One qualifies iff it is not truncated, its outcome is 1 (a total of terms: at least ``config.at_least``) and its
    caption's reward is greater than ``config.alpha`` (strictly: 6 of 8 fails at 0.75). Equal lengths are decided by the
    lower id, so the order of ``candidates`` does not matter; a random choice (ablation) depends on ``seed`` and the ids
    alone.
    """
    dropped: Counter[str] = Counter()
    qualified: dict[str, list[tuple[int | str, str]]] = defaultdict(list)
    for candidate in candidates:
        reason = reason_to_drop(candidate, rewards, config)
        if reason:
            dropped[reason] += 1
            continue
        rank: int | str = candidate.length
        if config.select == "random":
            rank = hashlib.sha256(f"{seed}\n{candidate.id}".encode()).hexdigest()
        qualified[candidate.question_id].append((rank, candidate.id))
    kept: list[str] = []
    for question in sorted(qualified):
        ranked = sorted(qualified[question])  # type: ignore[type-var]
        kept += [candidate_id for _, candidate_id in ranked[: config.keep]]
        beyond = len(ranked) - config.keep
        if beyond > 0:
            dropped["not_shortest" if config.select == "shortest" else "not_drawn"] += beyond
    return Selection(tuple(kept), dropped)


def reason_to_drop(candidate: Candidate, rewards: Mapping[PairKey, float], config: Reward) -> str:
    """Why a trajectory is not in the kept set: "truncated", its verdict, or "caption_reward"; "" if it qualifies."""
    reason = own_reason_to_drop(candidate, config)
    if not reason and config.use_visual_reward and not _caption_passes(candidate, rewards, config):
        return "caption_reward"
    return reason


def own_reason_to_drop(candidate: Candidate, config: Reward) -> str:
    """As ``reason_to_drop``, whatever the reward of its caption is."""
    if candidate.truncated:
        return "truncated"
    if candidate.by_terms and candidate.total is None:
        return "not_judged"
    if config.require_correct and candidate.by_terms:
        if candidate.total is not None and candidate.total < config.at_least - _ROUNDING:
            return "reward"
    elif config.require_correct and candidate.verdict != "correct":
        return candidate.verdict
    return ""


def passes(caption_reward: float, config: Reward) -> bool:
    """Whether a caption of this reward may have kept trajectories: it is greater than alpha (eq. 6)."""
    return caption_reward > config.alpha


def _caption_passes(candidate: Candidate, rewards: Mapping[PairKey, float], config: Reward) -> bool:
    return passes(rewards[candidate.question_id, candidate.caption_id], config)

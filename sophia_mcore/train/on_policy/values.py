"""Numbers of a batch for metrics.jsonl: what was answered, how it was judged, and how much of it teaches something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sophia_mcore.config.functions import RewardTerm
from sophia_mcore.environments.terms import Value, per_turn
from sophia_mcore.errors import SophiaError
from sophia_mcore.records import BROKEN
from sophia_mcore.rl.groups import Weighed
from sophia_mcore.train.on_policy.answers import Sampled

_TURNS = 4  # whose accuracy is logged


def check_broken(turns: Sequence[Sampled], number: int, limit: float) -> None:
    """Raise SophiaError when more than ``limit`` of a batch's episodes are broken: then a function is to be mended."""
    episodes = {(one.graded.question_id, one.graded.index): one.graded for one in turns}
    broken = Counter(one.why for one in episodes.values() if one.status == "broken")
    if broken.total() > limit * len(episodes):
        raise SophiaError(
            f"batch {number}: {broken.total()} of {len(episodes)} episodes are broken, more than "
            f"functions.max_broken_share = {limit}; the most frequent failure: {broken.most_common(1)[0][0]}"
        )


def episode_values(turns: Sequence[Sampled], terms: Sequence[RewardTerm]) -> dict[str, float]:
    """Rewards by term and in sum, and how the episodes went. A mean over nothing is left out."""
    episodes: dict[tuple[str, int], list[Sampled]] = {}
    for one in turns:
        episodes.setdefault((one.graded.question_id, one.graded.index), []).append(one)
    ordered = [sorted(own, key=lambda one: one.graded.turn) for own in episodes.values()]
    totals: list[float] = []
    by_term: dict[str, list[float]] = {term.label: [] for term in terms}
    missing: Counter[str] = Counter()
    for own in ordered:
        for label in by_term:
            values = [one.graded.scores[label] for one in own if label in one.graded.scores]
            if any(value is None for value in values):
                missing[label] += 1
            elif values:
                by_term[label].append(summed(values))
        whole = [per_turn(one.graded.scores, terms, 1) for one in own if one.graded.scores]
        parts = [part[0] for part in whole if part is not None]
        if whole and len(parts) == len(whole) and own[0].graded.status != "broken":
            totals.append(sum(parts))
    found = {f"reward_{label}": float(np.mean(values)) for label, values in by_term.items() if values}
    found |= {f"not_judged_{label}": count for label, count in sorted(missing.items())}
    count = len(ordered)
    if totals:
        found |= {"reward_mean": float(np.mean(totals)), "reward_deviation": float(np.std(totals))}
    if count:
        statuses = Counter(own[0].graded.status for own in ordered)
        found |= {
            "episodes": count,
            "turns_mean": len(turns) / count,
            "broken_episodes_share": statuses["broken"] / count,
            "cut_off_share": statuses["cut_off"] / count,
            "not_judged_share": 1.0 - len(totals) / count,
        }
    if any(len(own) > 1 for own in ordered):
        for place in range(min(_TURNS, max(len(own) for own in ordered))):
            rights = [own[place].graded.verdict == "correct" for own in ordered if place < len(own)]
            found[f"accuracy_turn_{place + 1}"] = float(np.mean(rights))
    return found


def summed(values: Sequence[Value]) -> float:
    """Sum of the values of an episode's turns. A missing value counts 0."""
    return sum(sum(value) if isinstance(value, list) else value or 0.0 for value in values)


def last_turns(turns: Sequence[Sampled]) -> list[Sampled]:
    """The last turn of each episode, in the order of their first ones."""
    found: dict[tuple[str, int], Sampled] = {}
    for one in turns:
        key = one.graded.question_id, one.graded.index
        if key not in found or one.graded.turn > found[key].graded.turn:
            found[key] = one
    return list(found.values())


def batch_values(
    first: Sequence[Sampled], weighed: Sequence[Weighed], left_out: Counter[str], *, asked: int, trained_version: int
) -> dict[str, float]:
    """Numbers of a batch, over its first answers (of episodes: the last turns). A mean over nothing is left out."""
    turns, first = first, last_turns(first)
    groups: dict[str, list[Sampled]] = {}
    for one in first:
        groups.setdefault(one.graded.question_id, []).append(one)
    judged = {q: [one for one in group if one.graded.verdict not in BROKEN] for q, group in groups.items()}
    right = {q: sum(one.graded.verdict == "correct" for one in group) for q, group in judged.items()}
    useful = {one.question_id for one in weighed}
    tokens = sum(one.graded.tokens for one in turns)
    wasted = sum(one.graded.tokens for one in turns if one.graded.question_id not in useful)
    logprobs = np.concatenate([np.zeros(0), *(one.logprobs for one in turns)])
    ages = [trained_version - one.version for one in first]
    means: dict[str, Sequence[float]] = {
        "accuracy": [float(one.graded.verdict == "correct") for one in first],
        "truncated_share": [float(one.graded.truncated) for one in first],
        "broken_share": [float(one.graded.verdict in BROKEN) for one in first],
        "tokens_mean": [one.graded.tokens for one in first],
        "tokens_right": [one.graded.tokens for one in first if one.graded.verdict == "correct"],
        "tokens_wrong": [one.graded.tokens for one in first if one.graded.verdict in ("wrong", "no_answer")],
        "lag_mean": ages,
        "wait_share": [float(one.waits) for one in first],
    }
    values = {name: float(np.mean(numbers)) for name, numbers in means.items() if len(numbers)}
    if first:
        lengths = [one.graded.tokens for one in first]
        values |= {f"tokens_p{q}": float(np.quantile(lengths, q / 100, method="higher")) for q in (50, 99)}
        values["lag_max"] = max(ages)
        values["effective_share"] = len(weighed) / len(turns)
        values["zero_advantage_token_share"] = wasted / tokens if tokens else 0.0
    if len(logprobs):
        values["entropy_sampled"] = -float(logprobs.mean())
    return values | {
        "questions": asked,
        "answers": len(first),
        "tokens_sampled": tokens,
        "groups_mixed": sum(0 < right[q] < len(judged[q]) for q in judged),
        "groups_all_right": sum(0 < right[q] == len(judged[q]) for q in judged),
        "groups_all_wrong": sum(bool(judged[q]) and right[q] == 0 for q in judged),
        "groups_lost": asked - len(groups),
        "answers_effective": len(weighed),
        **{f"left_out_{reason}": count for reason, count in sorted(left_out.items()) if count},
    }


def rethinking_values(
    rethought: Sequence[Sampled], auxiliary: Sequence[str], answers: dict[str, Sampled]
) -> dict[str, float]:
    """How many answers were continued, how many of those are imitated, and how many of these were wrong before."""
    if not rethought:
        return {}
    parents = {one.id: one.parent for one in rethought}
    before = [answers.get(parents[name]) for name in auxiliary]
    repaired = sum(one is not None and one.graded.verdict != "correct" for one in before)
    return {"rethink_asked": len(rethought), "rethink_kept": len(auxiliary), "rethink_repaired": repaired}

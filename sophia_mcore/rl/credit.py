"""From the rewards of episodes to what each turn of the policy is worth. Pure functions.

An episode is the turns of one answer to a question; a group is the episodes about one question in one batch. One
training sample is made of each turn of the policy, in the prompt that it was sampled in.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sophia_mcore.config.functions import RewardTerm
from sophia_mcore.environments.terms import Value, per_turn
from sophia_mcore.records import BROKEN
from sophia_mcore.rl.groups import Graded, Overlong, Weighed, soft_overlong
from sophia_mcore.score.advantage import group_weights

_SAME = 1e-9  # totals that differ by less are equal: 0.1 + 0.2 is not 0.3


@dataclass(frozen=True, slots=True)
class Credited:
    """An episode that was judged: its turns of the policy, in order, and the weighted reward of each."""

    turns: tuple[Graded, ...]
    rewards: tuple[float, ...]

    @property
    def total(self) -> float:
        """What the whole episode got."""
        return sum(self.rewards)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What becomes of truncated turns: as in ``groups.advantages``."""

    overlong: Overlong = "wrong"
    max_tokens: int = 0
    overlong_cache: int = 0


def judged_groups(
    turns: Iterable[Graded], unfit: Mapping[str, str], terms: Sequence[RewardTerm], shaping: Shaping
) -> tuple[dict[str, list[Credited]], Counter[str]]:
    """The judged episodes of each question, by index, and why turns are left out: counted per turn.

    An episode leaves its group before any mean is formed when it is broken, when a term has not judged it, or when one
    of its turns cannot be trained on (``unfit``: id -> reason). A group with fewer than two left is left out.
    """
    groups: dict[str, dict[int, list[Graded]]] = defaultdict(lambda: defaultdict(list))
    for turn in turns:
        groups[turn.question_id][turn.index].append(turn)
    found: dict[str, list[Credited]] = {}
    left_out: Counter[str] = Counter()
    for question in sorted(groups):
        judged = []
        for index in sorted(groups[question]):
            own = sorted(groups[question][index], key=lambda turn: turn.turn)
            reason = next((unfit[turn.id] for turn in own if turn.id in unfit), "")
            if own[0].status == "broken":
                reason = "broken"
            rewards = None if reason else _rewards(own, terms, shaping)
            if rewards is None:
                left_out[reason or "not_judged"] += len(own)
            else:
                judged.append(Credited(tuple(own), tuple(rewards)))
        if len(judged) < 2:
            left_out["too_few"] += sum(len(one.turns) for one in judged)
        else:
            found[question] = judged
    return found, left_out


def _rewards(turns: Sequence[Graded], terms: Sequence[RewardTerm], shaping: Shaping) -> list[float] | None:
    """The weighted reward of each turn; None when a term has not judged the episode."""
    verdicts = {term.label for term in terms if term.function == "correct"}
    found = []
    for place, turn in enumerate(turns):
        values: dict[str, Value] = dict(turn.scores)
        for label in verdicts & values.keys():  # truncation is a setting of the trainer's
            values[label] = None if turn.verdict in BROKEN else float(turn.right(shaping.overlong))
        last = place == len(turns) - 1
        if not values and not last:
            found.append(0.0)
            continue
        reward = per_turn(values, terms, 1)
        if reward is None:
            return None
        found.append(reward[0])
    if shaping.overlong == "soft":
        found = [
            reward + soft_overlong(turn.tokens, shaping.max_tokens, shaping.overlong_cache)
            for reward, turn in zip(found, turns, strict=True)
        ]
    return found


def credit(
    groups: Mapping[str, Sequence[Credited]],
    *,
    weigh: str,
    advantage: str,
    masked: bool = False,
    own: Mapping[str, Sequence[float]] | None = None,
) -> tuple[list[Weighed], Counter[str]]:
    """The turns that training uses, each with its advantage, and why the others are not used.

    ``weigh``: "episode" compares the sums of the episodes' rewards, and every turn has its episode's advantage; "turn"
    compares a turn's reward with those of the same turn of the group's other episodes (gamma 0); "return" likewise with
    the sum of its reward and all later ones. Equal rewards teach nothing. ``own``: [advantage, kl] of each turn by its
    id, from the user's own function. ``masked``: truncated turns are compared and not trained on.
    """
    found: list[Weighed] = []
    left_out: Counter[str] = Counter()
    for question in sorted(groups):
        group = groups[question]
        weights = _own(group, own) if own is not None else _built_in(group, weigh, advantage)
        for episode, row in zip(group, weights, strict=True):
            for turn, (value, kl) in zip(episode.turns, row, strict=True):
                if value == 0.0 and kl == 0.0:
                    left_out["zero_weight" if own is not None else "all_equal"] += 1
                elif masked and turn.truncated:
                    left_out["masked"] += 1
                else:
                    found.append(Weighed(turn.id, question, value, kl))
    return found, left_out


def _own(group: Sequence[Credited], own: Mapping[str, Sequence[float]]) -> list[list[tuple[float, float]]]:
    return [
        [(own[turn.id][0], own[turn.id][1]) if turn.id in own else (0.0, 0.0) for turn in one.turns] for one in group
    ]


def _built_in(group: Sequence[Credited], weigh: str, advantage: str) -> list[list[tuple[float, float]]]:
    if weigh == "episode":
        values = _compared([one.total for one in group], advantage)
        return [[(value, 0.0) for _ in one.turns] for one, value in zip(group, values, strict=True)]
    rows: list[list[tuple[float, float]]] = [[] for _ in group]
    for place in range(max(len(one.turns) for one in group)):
        there = [index for index, one in enumerate(group) if place < len(one.turns)]
        rewards = [
            group[index].rewards[place] if weigh == "turn" else sum(group[index].rewards[place:]) for index in there
        ]
        for index, value in zip(there, _compared(rewards, advantage), strict=True):
            rows[index].append((value, 0.0))
    return rows


def _compared(values: Sequence[float], advantage: str) -> list[float]:
    """Group weights; all 0 where the values are equal but for rounding, or there is nothing to compare with."""
    compares = advantage in ("group_mean", "group_normalized")
    spread = max(values) - min(values)
    if compares and spread <= _SAME * max(1.0, *(abs(value) for value in values)):
        return [0.0] * len(values)
    return group_weights(values, advantage)

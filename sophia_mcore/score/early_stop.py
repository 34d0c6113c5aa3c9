"""When a caption, or one of its trajectories, can no longer change the kept set (eqs. 5 and 6). Pure functions.

A question's captions are sampled from in waves. Between waves, a caption that cannot exceed alpha any more gets no
further trajectory. Within a wave, a running trajectory is cut as soon as nothing of its caption that ranks so far back
can be kept. Ranks are (length in tokens, id), as ``reward.select`` compares them.

What a wave leaves does not depend on the order or the moment in which its trajectories end: ``limit`` only falls
while more is known, and what ranks behind the last ``limit`` is not stored even if it ended. All that ranks before it
has always ended. So a unit that is sampled twice is stored twice the same.

Verdicts that could not be reached (timeout, error) may be reached in the score phase: here they count as possibly
right where that keeps a caption alive, and as possibly wrong where it would make one certain to pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from sophia_mcore.config.schema import Reward
from sophia_mcore.records import BROKEN
from sophia_mcore.score.reward import Candidate, PairKey, own_reason_to_drop, passes, visual_rewards

Rank = tuple[int, str]


@dataclass(frozen=True)
class Rule:
    """What decides about a caption of ``per_caption`` = N trajectories.

    ``fatal`` wrong ones, and its reward cannot exceed alpha whatever the others are; ``enough`` right ones, and it
    does. Both are N + 1, or 0, where the reward of a caption is not asked for (``reward.use_visual_reward``).
    """

    reward: Reward
    per_caption: int

    @cached_property
    def fatal(self) -> int:
        """The smallest number of wrong trajectories with which the caption fails even if all others are right."""
        if not self.reward.use_visual_reward:
            return self.per_caption + 1
        return next(w for w in range(1, self.per_caption + 1) if not self._passes(self.per_caption - w))

    @cached_property
    def enough(self) -> int:
        """The smallest number of right trajectories with which the caption passes even if all others are wrong."""
        if not self.reward.use_visual_reward:
            return 0
        return next(r for r in range(self.per_caption + 1) if self._passes(r))

    def _passes(self, right: int) -> bool:
        """Whether a caption passes if ``right`` of its N trajectories are right and the others are wrong."""
        found = [
            Candidate(str(n), "", "", 0, False, "correct" if n < right else "wrong") for n in range(self.per_caption)
        ]
        return passes(visual_rewards(found, self.reward.broken)["", ""], self.reward)


def waves_of(waves: Sequence[int], per_caption: int) -> list[range]:
    """The indices n of each wave; the last size is repeated until all N are in one.

    >>> waves_of((2, 1), 5)
    [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    """
    found: list[range] = []
    begin = 0
    while begin < per_caption:
        size = waves[min(len(found), len(waves) - 1)]
        found.append(range(begin, min(begin + size, per_caption)))
        begin += size
    return found


@dataclass
class Standing:
    """A caption of one question, between and within waves.

    ``earlier`` are its trajectories of the waves before, ``ended`` those of this wave that have a verdict; ``running``
    are the others of this wave, by id, with the tokens that each has so far (0: not begun, or not known).
    ``last``: no wave follows.
    """

    earlier: list[Candidate] = field(default_factory=list)
    ended: list[Candidate] = field(default_factory=list)
    running: dict[str, int] = field(default_factory=dict)
    last: bool = False

    @property
    def known(self) -> list[Candidate]:
        """All that have a verdict."""
        return [*self.earlier, *self.ended]


def rank(candidate: Candidate) -> Rank:
    """Of two that qualify the lower one is kept first."""
    return candidate.length, candidate.id


def is_dead(rule: Rule, known: Iterable[Candidate]) -> bool:
    """Whether a caption with these trajectories cannot exceed alpha."""
    return sum(_is_wrong(candidate) for candidate in known) >= rule.fatal


def bar(rule: Rule, captions: Iterable[Sequence[Candidate]]) -> Rank | None:
    """The rank behind which nothing of the question is kept: that of the ``keep``-th which is certain to qualify.

    None: there are not so many yet, or the kept ones are not the shortest.
    """
    if rule.reward.select != "shortest":
        return None
    certain = sorted(
        rank(candidate)
        for known in captions
        if sum(one.verdict == "correct" for one in known) >= rule.enough
        for candidate in known
        if _qualifies(rule.reward, candidate)
    )
    return certain[rule.reward.keep - 1] if len(certain) >= rule.reward.keep else None


def limits(rule: Rule, captions: Mapping[str, Standing]) -> dict[str, Rank]:
    """The rank behind which trajectories of this wave are of no use, for each caption of a question that has one.

    It is that of the wrong one that made the caption hopeless; or in the last wave the ``bar``, if nothing of the
    caption can be kept: then its reward changes nothing.
    """
    behind = bar(rule, (standing.known for standing in captions.values()))
    found: dict[str, Rank] = {}
    for name, standing in captions.items():
        reasons = []
        if (fatal := _fatal_rank(rule, standing)) is not None:
            reasons.append(fatal)
        if behind is not None and standing.last and not _can_be_kept(rule.reward, standing, behind):
            reasons.append(behind)
        if reasons:
            found[name] = min(reasons)
    return found


def to_cut(standing: Standing, limit: Rank) -> list[str]:
    """The running trajectories that are certain to rank behind ``limit``: each gets one token more at least."""
    return [name for name, tokens in standing.running.items() if tokens and (tokens + 1, name) > limit]


@dataclass(frozen=True)
class Cut:
    """Captions of a question that were cut in their last wave: nothing that ranks behind ``bar`` is stored."""

    bar: Rank
    captions: frozenset[str]


def unjustified(rule: Rule, candidates: Iterable[Candidate], cuts: Mapping[str, Cut]) -> list[PairKey]:
    """(question, caption) of captions with less than N trajectories that may change the kept set after all.

    ``cuts``: by question. None is found in what sampling with the same rule has left, unless verdicts have changed.
    """
    questions: dict[str, dict[str, list[Candidate]]] = {}
    for candidate in candidates:
        captions = questions.setdefault(candidate.question_id, {})
        captions.setdefault(candidate.caption_id, []).append(candidate)
    found = []
    for question, captions in questions.items():
        behind = bar(rule, captions.values())
        for caption, known in captions.items():
            if len(known) >= rule.per_caption or _is_hopeless(rule, known):
                continue
            cut = cuts.get(question)
            was_cut = cut is not None and caption in cut.captions and behind is not None and behind <= cut.bar
            if not was_cut or _can_be_kept(rule.reward, Standing(earlier=known), behind):
                found.append((question, caption))
    return found


def _is_hopeless(rule: Rule, known: Sequence[Candidate]) -> bool:
    """As ``is_dead``, by the reward that the score phase gives: there a broken verdict may count as not correct."""
    wrong = sum(_is_wrong(one) or (rule.reward.broken == "not_correct" and one.verdict in BROKEN) for one in known)
    return wrong >= rule.fatal


def _fatal_rank(rule: Rule, standing: Standing) -> Rank | None:
    """The rank of the wrong one of this wave that made the caption hopeless, the shortest first."""
    wrong = sorted(rank(candidate) for candidate in standing.ended if _is_wrong(candidate))
    missing = rule.fatal - sum(_is_wrong(candidate) for candidate in standing.earlier)
    return wrong[missing - 1] if 0 < missing <= len(wrong) else None


def _can_be_kept(reward: Reward, standing: Standing, behind: Rank | None) -> bool:
    """Whether a trajectory of the caption, taken by itself, may be among the kept ones of its question."""
    if behind is None:
        return True
    if any((tokens + 1 if tokens else 0, name) <= behind for name, tokens in standing.running.items()):
        return True
    return any(_may_qualify(reward, candidate) and rank(candidate) <= behind for candidate in standing.known)


def _is_wrong(candidate: Candidate) -> bool:
    return candidate.verdict != "correct" and candidate.verdict not in BROKEN


def _qualifies(reward: Reward, candidate: Candidate) -> bool:
    return not own_reason_to_drop(candidate, reward)


def _may_qualify(reward: Reward, candidate: Candidate) -> bool:
    """As ``_qualifies``, with verdicts that could not be reached taken as right."""
    return _qualifies(reward, replace(candidate, verdict="correct") if candidate.verdict in BROKEN else candidate)

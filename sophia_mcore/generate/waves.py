"""A work unit of trajectories that stops where nothing can be won (``score.early_stop``).

A question's captions are sampled from in waves, and each trajectory is graded as soon as it ends. When all of a wave
are graded, the captions that can still exceed alpha get the next one. Questions do not wait for each other, so that the
engine has their waves to fill its places with.

Seeds depend on the trajectory alone, never on its wave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.generate.phase import Asked
from sophia_mcore.generate.unit_work import TokensOf
from sophia_mcore.records import Trajectory, VerdictName
from sophia_mcore.score.early_stop import Rule, Standing, bar, is_dead, limits, rank, to_cut
from sophia_mcore.score.reward import Candidate
from sophia_mcore.store.units import Unit

_LOOK_STEPS = 4  # steps of the engine between two looks whether something can be cut

Grade = Callable[[Sequence[Trajectory]], Sequence[VerdictName]]
Captions = Mapping[str, Sequence[Asked[Trajectory]]]  # caption id -> its N trajectories


@dataclass
class _Contest:
    """One question: its captions in the present wave. ``places`` are those of each caption, by n."""

    question: str
    places: Mapping[str, Sequence[int]]
    standings: dict[str, Standing] = field(default_factory=dict)
    running: dict[int, str] = field(default_factory=dict)  # place -> caption: not ended, or not graded yet
    found: dict[int, Candidate] = field(default_factory=dict)  # of this wave
    watched: bool = False  # whether running ones may be of no use
    wave: int = 0


class WavesUnit:
    """Implements ``unit_work.UnitWork``. ``questions``: the captions of each question of the unit, in order.

    ``cuts``: the engine can give up running requests. If not, all that is asked ends and is stored.
    """

    def __init__(
        self,
        unit: Unit,
        questions: Sequence[Captions],
        model_digest: str,
        grade: Grade,
        rule: Rule,
        waves: Sequence[range],
        *,
        cuts: bool,
    ) -> None:
        self.unit, self._cuts = unit, cuts
        self._digest, self._grade, self._rule, self._waves = model_digest, grade, rule, waves
        self._asked: list[Asked[Trajectory]] = []
        self._ids: list[str] = []
        self._contests: list[_Contest] = []
        self._contest_of: list[_Contest] = []  # by place
        for question, captions in zip(unit.items, questions, strict=True):
            places = {}
            for caption, asked in captions.items():
                places[caption] = range(len(self._asked), len(self._asked) + len(asked))
                self._ids += [one.id for one in asked]
                self._asked += asked
            contest = _Contest(question, places, {name: Standing() for name in captions})
            self._contests.append(contest)
            self._contest_of += [contest] * (len(self._asked) - len(self._contest_of))
        self.size = len(self._asked)
        self._ready: deque[int] = deque()
        self._running: set[int] = set()  # given to the engine, not ended
        self._ungraded: list[int] = []
        self._records: dict[int, Trajectory] = {}
        self._open = len(self._contests)
        self._left_out = 0
        self._begun = 0  # of those that were left out
        self._cut_tokens = 0
        self._cut_captions: dict[str, dict[str, Any]] = {}  # by question: the bar, and captions that were cut there
        self._steps = 0
        for contest in self._contests:
            self._begin(contest, list(contest.places))

    def ready(self, most: int) -> list[tuple[int, Request]]:
        chosen = [self._ready.popleft() for _ in range(min(most, len(self._ready)))]
        self._running.update(chosen)
        return [(place, self._asked[place].request) for place in chosen]

    def take(self, place: int, completion: Completion) -> None:
        self._running.discard(place)
        record = self._records[place] = self._asked[place].record(completion, self._digest)
        contest = self._contest_of[place]
        contest.standings[contest.running[place]].running[record.id] = max(0, _length(record) - 1)
        self._ungraded.append(place)

    def job(self) -> Callable[[], Any] | None:
        if not self._ungraded:
            return None
        places, self._ungraded = self._ungraded, []
        return partial(_graded, self._grade, places, [self._records[place] for place in places])

    def settle(self, result: Sequence[tuple[int, VerdictName]]) -> None:
        touched: dict[int, _Contest] = {}
        for place, verdict in result:
            contest, record = self._contest_of[place], self._records[place]
            standing = contest.standings[contest.running.pop(place)]
            standing.running.pop(record.id)
            candidate = contest.found[place] = _candidate(record, verdict)
            standing.ended.append(candidate)
            touched[id(contest)] = contest
        for contest in touched.values():
            contest.watched = self._cuts and self._may_be_useless(contest)
            self._next(contest)

    def cut(self, tokens: TokensOf) -> list[int]:
        self._steps += 1
        if self._steps % _LOOK_STEPS or not self._running:
            return []
        contests = {id(one): one for place in self._running if (one := self._contest_of[place]).watched}
        return [place for contest in contests.values() for place in self._cut(contest, tokens)]

    @property
    def over(self) -> int:
        return len(self._records) - len(self._ungraded) + self._left_out

    def outcome(self) -> tuple[Sequence[Any], Mapping[str, Any]] | None:
        if self._open:
            return None
        counts = {
            "left_out": self.size - len(self._records),
            "begun": self._begun,
            "tokens_in_vain": self._cut_tokens,
            "cut": self._cut_captions,
        }
        return [self._records[place] for place in sorted(self._records)], {"early_stop": counts}

    def _begin(self, contest: _Contest, captions: Sequence[str]) -> None:
        """Ask the present wave of these captions, which are all that is left of the question."""
        for name in captions:
            standing = contest.standings[name]
            standing.last = self._is_last(contest)
            for n in self._waves[contest.wave]:
                place = contest.places[name][n]
                contest.running[place] = name
                standing.running[self._ids[place]] = 0
                self._ready.append(place)

    def _is_last(self, contest: _Contest) -> bool:
        return contest.wave == len(self._waves) - 1

    def _may_be_useless(self, contest: _Contest) -> bool:
        """Whether running trajectories of a question are of no use, or will be when they are longer."""
        known = [standing.known for standing in contest.standings.values()]
        decided = self._is_last(contest) and bar(self._rule, known) is not None
        return decided or bool(limits(self._rule, contest.standings))

    def _cut(self, contest: _Contest, tokens: TokensOf) -> list[int]:
        """The running trajectories of a question that have become of no use."""
        running = [place for place in contest.running if place in self._running]
        for place in running:
            contest.standings[contest.running[place]].running[self._ids[place]] = tokens(place)
        found_limits = limits(self._rule, contest.standings)
        useless = {name for key, limit in found_limits.items() for name in to_cut(contest.standings[key], limit)}
        found = [place for place in running if self._ids[place] in useless]
        for place in found:
            self._running.discard(place)
            contest.standings[contest.running.pop(place)].running.pop(self._ids[place])
        self._next(contest)
        return found

    def _next(self, contest: _Contest) -> None:
        """When a wave has ended, drop what cannot be kept and begin the next wave where a caption can still pass."""
        if contest.running:
            return
        asked = [name for name, standing in contest.standings.items() if not is_dead(self._rule, standing.earlier)]
        if self._cuts:
            self._leave_out(contest, asked)
        contest.found.clear()
        alive = [name for name in asked if not is_dead(self._rule, contest.standings[name].known)]
        for standing in contest.standings.values():
            standing.earlier, standing.ended = standing.known, []
        contest.watched, contest.wave = False, contest.wave + 1
        later = sum(len(wave) for wave in self._waves[contest.wave :])
        if alive and later:
            self._left_out += later * (len(asked) - len(alive))
            self._begin(contest, alive)
        else:
            self._left_out += later * len(asked)
            self._open -= 1

    def _leave_out(self, contest: _Contest, captions: Sequence[str]) -> None:
        """Drop the trajectories that cannot be kept, whether they were cut or had ended."""
        behind = bar(self._rule, [standing.known for standing in contest.standings.values()])
        for name, limit in limits(self._rule, contest.standings).items():
            places = [contest.places[name][n] for n in self._waves[contest.wave]] if name in captions else []
            useless = [p for p in places if p not in contest.found or rank(contest.found[p]) > limit]
            for place in useless:
                self._records.pop(place, None)
            self._cut_tokens += limit[0] * len(useless)
            self._left_out += len(useless)
            self._begun += len(useless)
            if useless and limit == behind:
                cut = self._cut_captions.setdefault(contest.question, {"bar": list(limit), "captions": []})
                cut["captions"].append(name)


def _length(record: Trajectory) -> int:
    """As ``score.candidates.stored_candidates`` counts it."""
    return len(record.token_ids) or len(record.text)


def _candidate(record: Trajectory, verdict: VerdictName) -> Candidate:
    truncated = record.finish_reason == "length"
    return Candidate(record.id, record.question_id, record.caption_id, _length(record), truncated, verdict)


def _graded(grade: Grade, places: Sequence[int], records: Sequence[Trajectory]) -> list[tuple[int, VerdictName]]:
    return list(zip(places, grade(records), strict=True))

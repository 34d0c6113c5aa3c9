"""From the rollouts of a batch to the samples of its updates: groups, advantages, filling up, auxiliary samples.

Everything is a pure function of the stored rollouts and the run's seed, so a resumed stage trains on the same samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sophia_mcore.config.rl import Rethink
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.rl.batches import Batch, read_batch
from sophia_mcore.rl.credit import Credited, credit, judged_groups
from sophia_mcore.rl.groups import Weighed, advantages
from sophia_mcore.rl.replay import is_new_episode, replay
from sophia_mcore.rl.rethink import Continuation, Rule, kept
from sophia_mcore.rl.stream import update_parts
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.json_files import read_json
from sophia_mcore.store.rl_folder import RlFolder
from sophia_mcore.train.on_policy.answers import Sampled, Tokens, read_rollouts
from sophia_mcore.train.on_policy.own import Learned, read_learned, shaping
from sophia_mcore.train.on_policy.values import batch_values, check_broken, episode_values, rethinking_values

TAKEN = "taken.json"  # in a batch's folder: the units that training uses


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one optimizer step learns from: ``fresh`` answers of the batch, then replayed ones. An answer that was drawn
    several times is there as often. ``buffer``: answers that could have been drawn.
    """

    samples: tuple[Weighed, ...] = ()
    fresh: int = 0
    auxiliary: tuple[str, ...] = ()
    buffer: int = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to learn: the step is counted and skipped."""
        return not self.samples and not self.auxiliary


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A batch, ready to train on."""

    number: int
    updates: tuple[Update, ...]
    weighed: tuple[Weighed, ...]  # the answers with an advantage, in order
    answers: dict[str, Sampled]  # what the updates name, and all first answers of the batch
    values: dict[str, float]  # for metrics.jsonl

    @property
    def effective(self) -> tuple[str, ...]:
        """Ids of the answers with an advantage, in order."""
        return tuple(one.id for one in self.weighed)


def drawn_batches(folder: RlFolder, number: int) -> list[Batch]:
    """The open folders of a batch: its first questions, then further draws."""
    found: list[Batch] = []
    while (batch := read_batch(folder.batch(number, len(found)))) is not None:
        found.append(batch)
    return found


def unit_states(batches: Sequence[Batch], attempts: int) -> tuple[set[str], dict[str, str], int]:
    """(ids of the finished units, errors of those given up by id, units in all)."""
    done: set[str] = set()
    lost: dict[str, str] = {}
    for batch in batches:
        queue = batch.queue(attempts)
        done |= queue.done_units()
        lost |= {failure.unit: failure.error for failure in queue.given_up()}
    return done, lost, sum(len(batch.units) for batch in batches)


def take(folder: RlFolder, number: int, attempts: int) -> None:
    """Note which units of a batch training uses, once: what is finished later changes nothing any more."""
    path = folder.batch(number) / TAKEN
    if not path.is_file():
        batches = drawn_batches(folder, number)
        done, lost, _ = unit_states(batches, attempts)
        write_json(path, {"draws": len(batches), "units": sorted(done), "lost": lost})


class Planner:
    """Plans batch after batch; keeps the answers that an episode may replay.

    Asked for another batch than the next, it reads the episode's earlier ones again. ``learned``: the folder where the
    user's own weighing and relabelling of a batch lies; by default that of the batch.
    """

    def __init__(
        self, config: Config, folder: RlFolder, tokens: Tokens, learned: Callable[[int], Path] | None = None
    ) -> None:
        self._config, self._rl, self._seed = config, config.on_policy, config.run.seed
        self._attempts = config.cluster.unit_attempts
        self._terms = () if config.verdict_alone else config.reward_terms
        self._learned = learned or folder.batch
        self._folder, self._tokens = folder, tokens
        self._buffer: list[Weighed] = []
        self._known: dict[str, Sampled] = {}  # the buffer's answers
        self._next: int | None = None

    def plan(self, number: int) -> Plan:
        """The updates of a batch whose units are all done or given up.

        Raises SophiaError when more than rl.max_lost_share of its groups are lost.
        """
        if self._rl.fill == "ssr" and self._next != number:
            self._buffer, self._known = [], {}
            for earlier in range(self._episode_start(number), number):
                self._plan(earlier)
        plan = self._plan(number)
        self._next = number + 1
        return plan

    def _episode_start(self, number: int) -> int:
        rl = self._rl
        while not is_new_episode(number, rl.questions_per_batch, rl.ssr.episode_questions):
            number -= 1
        return number

    def _plan(self, number: int) -> Plan:
        rl = self._rl
        if is_new_episode(number, rl.questions_per_batch, rl.ssr.episode_questions):
            self._buffer, self._known = [], {}
        batches, _, first, rethought = self._read(number)
        questions = [item for batch in batches for unit in batch.units for item in unit.items]
        learned = read_learned(self._config, self._learned(number))
        weighed, left_out = self._weigh(first, learned)
        continued = self._kept(rethought)
        answers = {one.id: one for one in first} | {one.id: one for one in rethought if one.id in set(continued)}
        targets = [self._tokens.target(one, number) for one in learned.targets]
        fit = {one.id: one for one in targets if one is not None}
        answers |= fit
        left_out["relabel_unfit"] += len(targets) - len(fit)
        updates = self._updates(number, questions, weighed, [*continued, *fit], answers)
        values = batch_values(first, weighed, left_out, asked=len(questions), trained_version=number)
        values |= rethinking_values(rethought, continued, answers)
        if not self._config.verdict_alone or not rl.one_turn:
            values |= episode_values(first, self._config.reward_terms)
        everything = answers | self._known
        return Plan(number=number, updates=updates, weighed=tuple(weighed), answers=everything, values=values)

    def _read(self, number: int) -> tuple[list[Batch], set[str], list[Sampled], list[Sampled]]:
        """(open folders, finished units, first answers, their rethinkings) of a batch.

        Raises SophiaError when too many groups are lost, or too many episodes are broken.
        """
        batches, done, lost = self._taken(number)
        self._check_lost(number, lost, batches)
        everything = read_rollouts(batches, done, self._rl.lag, self._terms)
        first = [one for one in everything if not one.parent]
        check_broken(first, number, self._config.functions.max_broken_share)
        return batches, done, first, [one for one in everything if one.parent]

    def _taken(self, number: int) -> tuple[list[Batch], set[str], dict[str, str]]:
        """(open folders, finished units, units given up) as noted, or, before `take`, as they are now."""
        found = read_json(self._folder.batch(number) / TAKEN)
        batches = drawn_batches(self._folder, number)
        if found is None:
            return batches, *unit_states(batches, self._attempts)[:2]
        return batches[: found["draws"]], set(found["units"]), dict(found["lost"])

    def _check_lost(self, number: int, lost: dict[str, str], batches: list[Batch]) -> None:
        units = [unit for batch in batches for unit in batch.units]
        questions = sum(len(unit.items) for unit in units)
        gone = sum(len(unit.items) for unit in units if unit.id in lost)
        if gone > self._rl.max_lost_share * questions:
            first = min(lost)
            raise SophiaError(
                f"batch {number}: {gone} of {questions} groups are lost (rl.max_lost_share = "
                f"{self._rl.max_lost_share}); units {', '.join(sorted(lost))}; {first}: {lost[first]}"
            )

    def groups(self, number: int) -> tuple[list[Batch], set[str], dict[str, list[Credited]]]:
        """(open folders, finished units, judged episodes by question) of a batch whose units are done."""
        batches, done, first, _ = self._read(number)
        return batches, done, self._judged(first)[0]

    def useful_groups(self, number: int) -> int:
        """How many questions of a batch whose units are done have an answer with an advantage, by built-in weighing."""
        first = self._read(number)[2]
        return len({one.question_id for one in self._weigh(first, Learned())[0]})

    def _judged(self, first: Sequence[Sampled]) -> tuple[dict[str, list[Credited]], Counter[str]]:
        unfit = {
            one.id: reason
            for one in first
            if one.graded.status != "broken" and (reason := self._tokens.unfit(one)) is not None
        }
        terms = self._config.reward_terms
        return judged_groups((one.graded for one in first), unfit, terms, shaping(self._config))

    def _weigh(self, first: Sequence[Sampled], learned: Learned) -> tuple[list[Weighed], Counter[str]]:
        """Answers with an advantage that is not 0, and why the others are not used."""
        rl = self._rl
        if not self._config.verdict_alone or not rl.one_turn or learned.weights is not None:
            groups, left_out = self._judged(first)
            weighed, unused = credit(
                groups,
                weigh=rl.weigh.function,
                advantage=rl.objective.advantage or "group_normalized",
                masked=rl.overlong == "masked",
                own=learned.weights,
            )
            return weighed, left_out + unused
        reasons = {one.id: self._tokens.unfit(one) for one in first}
        weighed, left_out = advantages(
            (one.graded for one in first if reasons[one.id] is None),
            advantage=rl.objective.advantage or "group_normalized",
            overlong=rl.overlong,
            max_tokens=rl.max_tokens,
            overlong_cache=rl.overlong_cache,
        )
        left_out.update(reason for reason in reasons.values() if reason is not None)
        useful = [one for one in weighed if one.advantage != 0.0]
        left_out["zero_weight"] += len(weighed) - len(useful)
        return useful, left_out

    def _kept(self, rethought: Sequence[Sampled]) -> list[str]:
        """Ids of the rethinkings that are imitated."""
        fit = [one for one in rethought if self._tokens.unfit(one) is None]
        return kept(
            (
                Continuation(
                    id=one.id,
                    question_id=one.graded.question_id,
                    right=one.graded.verdict == "correct",
                    tokens=one.graded.tokens,
                    text=self._tokens.continuation(one),
                )
                for one in fit
            ),
            _rule(self._rl.rethink),
        )

    def _updates(
        self,
        number: int,
        questions: Sequence[str],
        weighed: Sequence[Weighed],
        auxiliary: Sequence[str],
        answers: dict[str, Sampled],
    ) -> tuple[Update, ...]:
        rl = self._rl
        useful = {one.question_id for one in weighed}
        if rl.fill == "resample":  # the first effective groups in the stream's order, as many as a batch has
            questions = [question for question in questions if question in useful][: rl.questions_per_batch]
        parts = update_parts(questions, number, rl.samples_per_update // rl.group, self._seed)
        parts += [[]] * (rl.updates_per_batch - len(parts))
        updates = []
        for index, part in enumerate(parts):
            members = set(part)
            fresh = [one for one in weighed if one.question_id in members]
            samples = fresh
            if rl.fill == "ssr":
                key = (self._seed, "ssr", number, index)
                samples, self._buffer = replay(fresh, self._buffer, rl.samples_per_update, rl.ssr.alpha, key)
                self._known |= {one.id: answers[one.id] for one in fresh}
            own = tuple(name for name in auxiliary if answers[name].graded.question_id in members)
            updates.append(Update(samples=tuple(samples), fresh=len(fresh), auxiliary=own, buffer=len(self._buffer)))
        return tuple(updates)


def _rule(settings: Rethink) -> Rule:
    return Rule(
        share=settings.share,
        cut_share=settings.cut_share,
        least_tokens=settings.least_tokens,
        most_tokens=settings.most_tokens,
        most_waits=settings.most_waits,
        per_question=settings.per_question,
    )

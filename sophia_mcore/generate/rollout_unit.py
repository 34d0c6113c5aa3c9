"""What is asked in a batch of the on-policy stage, and how completions become graded rollouts.

First every question is answered ``rl.group`` times. A drawn part of the answers then goes on behind a trigger (forced
rethinking, ``rl.rethink``): its tokens are reused, never encoded anew.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sophia_mcore.config.engines import Sampling
from sophia_mcore.config.schema import Config
from sophia_mcore.environments.terms import as_json
from sophia_mcore.environments.types import POLICY
from sophia_mcore.generate.answers import question_images, question_messages
from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.generate.episodes import Episodes
from sophia_mcore.generate.phase import sampled_fields
from sophia_mcore.generate.rendering import Renderer
from sophia_mcore.records import BROKEN, Question, Rollout, VerdictName, rollout_id
from sophia_mcore.rl.rethink import Rule, given_tokens, plan_rethinking
from sophia_mcore.rl.stream import rollout_seed
from sophia_mcore.rl.versions import Version
from sophia_mcore.score.grading import grade_item
from sophia_mcore.score.reward import outcome
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.lineage import seed_for
from sophia_mcore.store.units import Unit
from sophia_mcore.verify.grade import Grader

Waves = Generator[list[Request], Sequence[Completion], list[Rollout]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A rollout that is to be sampled: its request, and the fields of its record that are known before."""

    request: Request
    known: Mapping[str, Any]


class Examiner:
    """Asks and grades. ``renderer`` is of any version of the policy: they share tokenizer and chat template."""

    def __init__(
        self,
        config: Config,
        questions: Mapping[str, Question],
        system: str,
        images: ImageStore,
        grader: Grader,
        episodes: Episodes | None = None,
    ) -> None:
        self._config = config
        self._rl = config.on_policy
        self._questions = questions
        self._system = system
        self._images = images
        self._grader = grader
        rethink = self._rl.rethink
        self._rule = Rule(share=rethink.share, cut_share=rethink.cut_share)
        self.episodes = episodes

    def waves(self, unit: Unit, batch: int, version: Version, renderer: Renderer) -> Waves:
        """Everything about a unit: yields the requests of a wave, is sent their completions, returns the rollouts.

        A wave is the first answers, then perhaps their rethinkings; in an environment, one turn of every episode.
        """
        if self.episodes is not None and not self._rl.one_turn:
            return (yield from self.episodes.waves(unit.items, batch, version.version, version.digest, renderer))
        wanted = self.first(unit, batch)
        rollouts = self.grade(wanted, (yield [one.request for one in wanted]), version, renderer)
        if self.episodes is not None:
            rollouts = self.episodes.rewarded(rollouts)
        further = self.rethinking([one for one in rollouts if one.asked == POLICY], renderer)
        if further:
            rollouts += self.grade(further, (yield [one.request for one in further]), version, renderer)
        return rollouts

    def first(self, unit: Unit, batch: int) -> list[Wanted]:
        """``rl.group`` answers to each question of the unit, at temperature 1 and top-p 1."""
        sampling = Sampling(max_tokens=self._rl.max_tokens)
        wanted = []
        for question in (self._questions[item] for item in unit.items):
            messages = question_messages(question, self._system)
            files = question_images(question, self._images)
            for index in range(self._rl.group):
                request = Request(
                    messages=messages,
                    images=files,
                    sampling=sampling,
                    seed=rollout_seed(self._config.run.seed, batch, question.id, index),
                    no_image_tokens=True,
                )
                known = {
                    "id": rollout_id(question.id, batch, index),
                    "question_id": question.id,
                    "index": index,
                    "batch": batch,
                }
                wanted.append(Wanted(request, known))
        return wanted

    def rethinking(self, firsts: Sequence[Rollout], renderer: Renderer) -> list[Wanted]:
        """The answers that go on behind a trigger: a draw that depends on the run's seed and their ids alone.

        Left out are broken and truncated ones, and those with no room for a continuation.
        """
        rethink, seed = self._rl.rethink, self._config.run.seed
        if not rethink.share:
            return []
        wanted = []
        for first in firsts:
            room = len(first.token_ids) <= self._rl.max_tokens - rethink.most_tokens
            if first.verdict in BROKEN or first.finish_reason == "length" or not room:
                continue
            plan = plan_rethinking(first.id, first.verdict == "correct", seed, self._rule)
            if plan is None:
                continue
            trigger = renderer.tokenizer.encode(getattr(rethink, plan.kind), add_special_tokens=False).ids
            given = given_tokens(
                first.token_ids, renderer.decode(first.token_ids), plan, trigger, renderer.stop_ids, renderer.decode
            )
            question = self._questions[first.question_id]
            request = Request(
                messages=question_messages(question, self._system),
                images=question_images(question, self._images),
                sampling=Sampling(temperature=rethink.temperature, max_tokens=rethink.most_tokens),
                seed=seed_for(seed, "rl", "rethink", first.id),
                continue_ids=tuple(given),
                no_image_tokens=True,
            )
            known = {
                "id": f"{first.id}.r",
                "question_id": first.question_id,
                "index": first.index,
                "batch": first.batch,
                "parent": first.id,
                "trigger": plan.kind,
                "given": len(given),
            }
            wanted.append(Wanted(request, known))
        return wanted

    def grade(
        self, wanted: Sequence[Wanted], completions: Sequence[Completion], version: Version, renderer: Renderer
    ) -> list[Rollout]:
        """Rollouts of ``version``, in order. Truncated ones are graded too."""
        rows = [_row(one, completion, version, renderer) for one, completion in zip(wanted, completions, strict=True)]
        items = [grade_item(self._questions[row["question_id"]], row["id"], row["text"]) for row in rows]
        grades = self._grader.grade_many(items)
        return [
            Rollout(**row, verdict=grade.verdict, extracted=grade.extracted, scores=self._scores(row, grade.verdict))
            for row, grade in zip(rows, grades, strict=True)
        ]

    def _scores(self, row: Mapping[str, Any], verdict: VerdictName) -> str:
        """The one term of a reward that is the verdict alone; others come later."""
        if self.episodes is not None or row.get("parent"):
            return ""
        value = None if verdict in BROKEN else outcome(verdict, row["finish_reason"] == "length")
        return as_json({self._config.reward_terms[0].label: value})


def _row(wanted: Wanted, completion: Completion, version: Version, renderer: Renderer) -> dict[str, Any]:
    row = {**sampled_fields(wanted.request, completion, version.digest), **wanted.known, "version": version.version}
    row["token_ids"] = (*wanted.request.continue_ids, *completion.token_ids)
    row["text"] = renderer.whole_answer(wanted.request, completion)
    return row


def begun(waves: Waves) -> tuple[list[Request], list[Rollout]]:
    """The requests of the first wave; where there are none, the rollouts."""
    try:
        return next(waves), []
    except StopIteration as end:
        return [], end.value


def gone_on(waves: Waves, completions: Sequence[Completion]) -> tuple[list[Request], list[Rollout]]:
    """The requests of the next wave, or, when there are none, the rollouts of the unit."""
    try:
        return waves.send(completions), []
    except StopIteration as end:
        return [], end.value

"""Validation and evaluation in the stage's environment: the same seeds for every model, the last turn is the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sophia_mcore.config.engines import Sampling
from sophia_mcore.environments.play import Live
from sophia_mcore.environments.types import POLICY, Ask
from sophia_mcore.generate.answers import evaluation_queue, question_images
from sophia_mcore.generate.engine import Completion, Engine, Request
from sophia_mcore.generate.episodes import NOTHING, Episodes, Row, make_episodes
from sophia_mcore.generate.phase import read_questions, sampled_fields
from sophia_mcore.generate.rendering import Renderer
from sophia_mcore.pretrained.families import image_limits
from sophia_mcore.progress import Progress, counting
from sophia_mcore.records import Answer, trajectory_id
from sophia_mcore.rl.questions import exam_engine
from sophia_mcore.score.grading import grade_item, open_grader
from sophia_mcore.store.layout import Round
from sophia_mcore.store.lineage import prompt_hash, seed_for
from sophia_mcore.store.units import Unit, run_units

Sample = Callable[[Sequence[Request]], Sequence[Completion]]


@dataclass(frozen=True)
class EpisodeExam:
    """As ``answers.Exam``, in an environment. ``seed_of(name, index)``: seed of a sample."""

    episodes: Episodes
    sampling: Sampling
    samples: int
    seed_of: Callable[[str, int], int]

    def answers(self, unit: Unit, sample: Sample, digest: str, renderer: Renderer) -> list[Answer]:
        """The answers to the unit's questions: of each episode the policy's last turn.

        An episode whose functions fail has the verdict "error" and the reason as its text.
        """
        own = self.episodes
        rows = [
            Row(
                live=Live(
                    question=own.questions[item],
                    images=question_images(own.questions[item], own.images),
                    seed=self.seed_of(f"{item} environment", index),
                ),
                index=index,
            )
            for item in unit.items
            for index in range(self.samples)
        ]
        waves = own.play(rows, partial(self._request, renderer), renderer)
        requests = next(waves, None)
        while requests is not None:
            try:
                requests = waves.send(sample(requests))
            except StopIteration:
                requests = None
        return self._graded(rows, digest, renderer)

    def _request(self, renderer: Renderer, row: Row, ask: Ask) -> Request:
        turn, item = len(row.live.turns), row.live.question.id
        most = min(self.sampling.max_tokens, ask.max_tokens or self.sampling.max_tokens)
        given = renderer.tokenizer.encode(ask.prefill, add_special_tokens=False).ids if ask.prefill else []
        return Request(
            messages=ask.messages,
            images=ask.images,
            sampling=self.sampling.model_copy(update={"max_tokens": most}),
            seed=self.seed_of(f"{item} turn {turn}" if turn else item, row.index),
            continue_ids=tuple(given),
        )

    def _graded(self, rows: Sequence[Row], digest: str, renderer: Renderer) -> list[Answer]:
        own = self.episodes
        found: list[dict[str, Any]] = []
        for row in rows:
            last = max((turn for turn, one in enumerate(row.live.turns) if one.ask.to == POLICY), default=None)
            fields = dict(NOTHING)
            if last is not None:
                request, completion = row.sampled[last]
                fields = sampled_fields(request, completion, digest)
                fields["text"] = renderer.whole_answer(request, completion)
            if row.live.status == "broken":
                fields["text"] = row.live.why
            item = row.live.question.id
            fields |= {"id": trajectory_id(item, "", row.index), "question_id": item, "index": row.index}
            found.append(fields | {"model_digest": digest})
        items = [grade_item(own.questions[one["question_id"]], one["id"], one["text"]) for one in found]
        return [
            Answer(**fields, verdict="error", extracted="")
            if row.live.status == "broken"
            else Answer(**fields, verdict=grade.verdict, extracted=grade.extracted)
            for row, fields, grade in zip(rows, found, own.grader.grade_many(items), strict=True)
        ]


def evaluate_episodes(round: Round, label: str, model: Path, engine: Engine, progress: Progress) -> int:
    """Answer every evaluation question in the stage's environment under every protocol; as ``answers.evaluate``."""
    config, run = round.config, round.run
    questions = {q.id: q for q in read_questions(run.evaluation_questions_file, with_images=False)}
    renderer = Renderer.from_model_dir(model, image_limits(config.batch))
    finished = 0
    with ExitStack() as opened:
        grader = opened.enter_context(open_grader(config.score))
        episodes = make_episodes(config, run, questions, exam_engine(config, run), grader, opened)
        for protocol in config.evaluate.protocols:
            exam = EpisodeExam(
                episodes,
                protocol.sampling,
                protocol.samples,
                partial(seed_for, config.run.seed, "evaluation", protocol.name),
            )

            def work(unit: Unit, report: Callable[[int], None], exam: EpisodeExam = exam) -> list[Answer]:
                return exam.answers(unit, engine.generate, engine.model_digest, renderer)

            queue = evaluation_queue(round, label, protocol, list(questions))
            metadata = {"prompt_template": prompt_hash(episodes.system), "environment": "1"}
            task = counting(progress, f"evaluation of {label} in the environment ({protocol.name})")
            finished += run_units(queue, Answer, work, task, metadata=metadata)
    return finished

"""The policy answers questions from their images, and each answer is graded at once.

Two phases ask in this way: the evaluation, and a round whose objective learns from the policy's own answers too. The
latter are sampled beside the captions, by the same model in the same engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from sophia_mcore.benchmarks.opening import open_scorer
from sophia_mcore.benchmarks.prompts import place
from sophia_mcore.benchmarks.scoring import Scorer, details_of
from sophia_mcore.config.engines import Sampling
from sophia_mcore.config.schema import Protocol
from sophia_mcore.data.prompts import load_prompt
from sophia_mcore.generate.engine import Engine, Request
from sophia_mcore.generate.phase import Asked, read_questions
from sophia_mcore.generate.sampling import run_phase
from sophia_mcore.pretrained.chat import Message, plain, user_text
from sophia_mcore.progress import Progress
from sophia_mcore.records import Answer, Question, Trajectory, trajectory_id
from sophia_mcore.score.grading import grade_item, open_grader
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import Round
from sophia_mcore.store.lineage import prompt_hash, seed_for
from sophia_mcore.store.units import Unit, UnitQueue, units_of
from sophia_mcore.verify.grade import Grader


def generate_fresh(round: Round, engine: Engine, progress: Progress) -> int:
    """Sample the policy's own answers to every question that has none; returns how many units this process finished.

    Writes one shard of ``records.Answer`` per unit into ``round.folder.fresh``.
    Raises SophiaError when questions are missing, the engine fails, or the folder holds another model's answers.
    """
    config = round.config
    questions = {question.id: question for question in read_questions(round.run.questions_file, with_images=True)}
    with open_grader(config.score) as grader:
        exam = Exam(
            questions=questions,
            system=load_prompt("long_thinking", config.batch.long_thinking_prompt_file),
            images=ImageStore(round.run.images),
            grader=grader,
            sampling=Sampling(max_tokens=config.fresh.max_tokens),
            samples=config.fresh.per_question,
            seed_of=partial(seed_for, config.run.seed, "fresh", round.index),
        )
        name = f"the policy's own answers of round {round.index}"
        return exam.run(name, fresh_queue(round, list(questions)), engine, progress)


def fresh_queue(round: Round, question_ids: Sequence[str]) -> UnitQueue:
    """The units of a round's fresh trajectories. Items are questions."""
    units = units_of(question_ids, round.config.fresh.questions_per_unit)
    return UnitQueue(round.folder.fresh, units, owner="fresh", attempts=round.unit_attempts)


def evaluate(round: Round, label: str, engine: Engine, progress: Progress, *, system: str = "") -> int:
    """Answer and grade every evaluation question under every protocol; returns how many units this process finished.

    ``system``: the system message; "": that for long thinking.

    Writes one shard of ``records.Answer`` per unit into ``run.evaluation(label, protocol)``. Seeds depend neither on
    the model nor on the round, so models are compared under the same random numbers.
    Raises SophiaError when questions are missing, the engine fails, or the folder holds another model's answers.
    """
    config, run = round.config, round.run
    questions = {q.id: q for q in read_questions(run.evaluation_questions_file, with_images=False)}
    system = system or load_prompt("long_thinking", config.batch.long_thinking_prompt_file)
    finished = 0
    with open_grader(config.score) as grader, ExitStack() as opened:
        for protocol in config.evaluate.protocols:
            scorer = None
            if any(question.benchmark for question in questions.values()):
                scorer = opened.enter_context(open_scorer(config.score, protocol.scoring))
            exam = Exam(
                questions=questions,
                system=system,
                images=ImageStore(run.images),
                grader=grader,
                sampling=protocol.sampling,
                samples=protocol.samples,
                seed_of=partial(seed_for, config.run.seed, "evaluation", protocol.name),
                prompt=protocol.prompt,
                scorer=scorer,
            )
            queue = evaluation_queue(round, label, protocol, list(questions))
            finished += exam.run(f"evaluation of {label} ({protocol.name})", queue, engine, progress)
    return finished


def evaluation_queue(round: Round, label: str, protocol: Protocol, question_ids: Sequence[str]) -> UnitQueue:
    """The units of one protocol. Items are questions."""
    units = units_of(question_ids, round.config.evaluate.questions_per_unit)
    folder = round.run.evaluation(label, protocol.name)
    return UnitQueue(folder, units, owner=f"evaluate {label}", attempts=round.unit_attempts)


@dataclass(frozen=True)
class Exam:
    """What is asked, and how the replies become graded answers.

    ``seed_of(question id, index)`` is the seed of a sample; it does not depend on the model. ``prompt`` names the
    prompt of benchmarks' questions, which ``scorer`` scores; all others are asked and graded alike everywhere.
    """

    questions: Mapping[str, Question]
    system: str
    images: ImageStore
    grader: Grader
    sampling: Sampling
    samples: int
    seed_of: Callable[[str, int], int]
    prompt: str = "paper"
    scorer: Scorer | None = None

    def run(self, name: str, queue: UnitQueue, engine: Engine, progress: Progress) -> int:
        """Ask and grade the units of ``queue`` (their items are question ids) that are not done."""
        settings = {"prompt_template": prompt_hash(self.system)}
        if self.scorer is not None:
            settings["scoring"] = self.scorer.label
        return run_phase(name, queue, Answer, engine, progress, ask=self.ask, grade=self.grade, settings=settings)

    def ask(self, unit: Unit) -> list[Asked[Trajectory]]:
        """One request per sample: long-thinking prompt, images, question, as in training (method.md section 3)."""
        return [asked for item in unit.items for asked in self._of(self.questions[item])]

    def _of(self, question: Question) -> list[Asked[Trajectory]]:
        text, shown = self._text(question)
        files = tuple(self.images.get(digest) for digest in shown)
        own_prompt = bool(question.benchmark) and self.prompt == "vlmevalkit"  # which has no system prompt
        system = () if own_prompt else (Message("system", self.system),)
        return [
            Asked(
                Request(
                    messages=(*system, Message("user", text)),
                    images=files,
                    sampling=self.sampling,
                    seed=self.seed_of(question.id, index),
                ),
                partial(
                    Trajectory,
                    id=trajectory_id(question.id, "", index),
                    question_id=question.id,
                    index=index,
                    source="policy",
                ),
            )
            for index in range(self.samples)
        ]

    def _text(self, question: Question) -> tuple[str, tuple[str, ...]]:
        """The user's message, and the digests of its images in the order of their places."""
        if question.benchmark:
            return place(details_of(question)["prompts"][self.prompt], question.images)
        return user_text(plain(question.question), len(question.images)), question.images

    def grade(self, trajectories: Sequence[Trajectory]) -> list[Answer]:
        """Answers, in order. Truncated ones are graded too: a base model that cannot stop may still be right."""
        ordinary = [one for one in trajectories if not self.questions[one.question_id].benchmark]
        graded = self.grader.grade_many(
            [grade_item(self.questions[one.question_id], one.id, one.text) for one in ordinary]
        )
        answers = {
            trajectory.id: Answer(**_fields(trajectory), verdict=grade.verdict, extracted=grade.extracted)
            for trajectory, grade in zip(ordinary, graded, strict=True)
        }
        others = [one for one in trajectories if one.id not in answers]
        if others:
            assert self.scorer is not None
            scores = self.scorer.score([(self.questions[one.question_id], one.text) for one in others])
            answers |= {
                one.id: Answer(
                    **_fields(one),
                    verdict=score.verdict,
                    extracted=score.extracted,
                    settled_by=score.settled_by,
                    credit=score.credit,
                    direct=score.direct,
                )
                for one, score in zip(others, scores, strict=True)
            }
        return [answers[trajectory.id] for trajectory in trajectories]


def question_messages(question: Question, system: str) -> tuple[Message, ...]:
    """A question as the policy is asked it, and as training shows it."""
    text = user_text(plain(question.question), len(question.images))
    return Message("system", system), Message("user", text)


def question_images(question: Question, images: ImageStore) -> tuple[bytes, ...]:
    """The image files of a question, in order. Raises SophiaError when one is missing."""
    return tuple(images.get(digest) for digest in question.images)


def _fields(trajectory: Trajectory) -> dict[str, Any]:
    return {field.name: getattr(trajectory, field.name) for field in fields(Trajectory)}

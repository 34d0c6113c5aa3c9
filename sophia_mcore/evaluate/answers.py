"""The policy answers the evaluation questions, and each answer is graded on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sophia_mcore.batch.samples import user_text
from sophia_mcore.config.schema import Config, Protocol
from sophia_mcore.data.chat import Message
from sophia_mcore.generate.engine import Completion, Engine, Request
from sophia_mcore.generate.phase import plain, read_questions, run_phase, sampled_fields
from sophia_mcore.generate.prompts import load_prompt
from sophia_mcore.progress import Progress
from sophia_mcore.records import Answer, Question
from sophia_mcore.score.grade import Grader
from sophia_mcore.score.types import GradeItem
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import prompt_hash, seed_for
from sophia_mcore.store.units import Unit, UnitQueue, units_of


def evaluate(config: Config, run: RunFolder, label: str, engine: Engine, progress: Progress, attempts: int = 1) -> int:
    """Answer and grade every evaluation question under every protocol; returns how many units were left to do.

    Writes one shard of ``records.Answer`` per unit into ``run.evaluation(label, protocol)``.
    Raises SophiaError when questions are missing, the engine fails, or the folder holds another model's answers.
    """
    questions = {q.id: q for q in read_questions(run.evaluation_questions_file, with_images=False)}
    system = load_prompt("long_thinking", config.batch.long_thinking_prompt_file)
    finished = 0
    with Grader(config.score) as grader:
        for protocol in config.evaluate.protocols:
            exam = _Exam(config, protocol, questions, system, ImageStore(run.images), grader)
            finished += run_phase(
                f"evaluation of {label} ({protocol.name})",
                evaluation_queue(config, run, label, protocol, list(questions)),
                Answer,
                engine,
                progress,
                plan=exam.requests,
                collect=exam.answers,
                settings={"prompt_template": prompt_hash(system)},
                attempts=attempts,
            )
    return finished


def evaluation_queue(config: Config, run: RunFolder, label: str, protocol: Protocol, ids: Sequence[str]) -> UnitQueue:
    """The units of one protocol. Items are questions."""
    units = units_of(ids, config.evaluate.questions_per_unit)
    return UnitQueue(run.evaluation(label, protocol.name), units, owner=f"evaluate {label}")


def answer_requests(
    config: Config, protocol: Protocol, system: str, question: Question, store: ImageStore
) -> list[Request]:
    """One request per sample: long-thinking system prompt, images and question, as in training (method.md section 3).

    Seeds do not depend on the model, so models are compared under the same random numbers.
    """
    messages = (Message("system", system), Message("user", user_text(plain(question.question), len(question.images))))
    files = tuple(store.get(digest) for digest in question.images)
    return [
        Request(
            messages=messages,
            images=files,
            sampling=protocol.sampling,
            seed=seed_for(config.run.seed, "evaluation", protocol.name, question.id, index),
        )
        for index in range(protocol.samples)
    ]


@dataclass(frozen=True)
class _Exam:
    """One protocol: what is asked, and how the replies become graded answers."""

    config: Config
    protocol: Protocol
    questions: dict[str, Question]
    system: str
    images: ImageStore
    grader: Grader

    def requests(self, unit: Unit) -> list[Request]:
        return [
            request
            for question_id in unit.items
            for request in answer_requests(
                self.config, self.protocol, self.system, self.questions[question_id], self.images
            )
        ]

    def answers(
        self, unit: Unit, requests: Sequence[Request], completions: Sequence[Completion], digest: str
    ) -> list[Answer]:
        """Graded answers. Truncated ones are graded too: a base model that does not know when to stop may be right."""
        keys = [(self.questions[item], index) for item in unit.items for index in range(self.protocol.samples)]
        items = [
            GradeItem(
                id=f"{question.id}.n{index}",
                response=completion.text,
                answer=question.answer,
                answer_type=question.answer_type,
                options=question.options,
                rules=question.source,
                question=question.question,
            )
            for (question, index), completion in zip(keys, completions, strict=True)
        ]
        graded = zip(keys, requests, completions, self.grader.grade_many(items), strict=True)
        return [
            Answer(
                id=grade.id,
                question_id=question.id,
                index=index,
                verdict=grade.verdict,
                extracted=grade.extracted,
                **sampled_fields(request, completion, digest),
            )
            for (question, index), request, completion, grade in graded
        ]

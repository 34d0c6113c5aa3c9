"""The policy answers questions from their images, and each answer is graded on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sophia_mcore.batch.samples import user_text
from sophia_mcore.config.engines import Sampling
from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.generate.phase import sampled_fields
from sophia_mcore.pretrained.chat import Message, plain
from sophia_mcore.records import Answer, Question
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.units import Unit
from sophia_mcore.verify.grade import Grader
from sophia_mcore.verify.types import GradeItem


@dataclass(frozen=True)
class Exam:
    """What is asked, and how the replies become graded answers.

    ``seed_of(question id, index)`` is the seed of a sample; it does not depend on the model.
    """

    questions: Mapping[str, Question]
    system: str
    images: ImageStore
    grader: Grader
    sampling: Sampling
    samples: int
    seed_of: Callable[[str, int], int]

    def requests(self, unit: Unit) -> list[Request]:
        """One request per sample: long-thinking prompt, images, question, as in training (method.md section 3)."""
        return [request for item in unit.items for request in self._of(self.questions[item])]

    def _of(self, question: Question) -> list[Request]:
        text = user_text(plain(question.question), len(question.images))
        files = tuple(self.images.get(digest) for digest in question.images)
        return [
            Request(
                messages=(Message("system", self.system), Message("user", text)),
                images=files,
                sampling=self.sampling,
                seed=self.seed_of(question.id, index),
            )
            for index in range(self.samples)
        ]

    def answers(
        self, unit: Unit, requests: Sequence[Request], completions: Sequence[Completion], digest: str
    ) -> list[Answer]:
        """Graded answers. Truncated ones are graded too: a base model that does not know when to stop may be right."""
        keys = [(self.questions[item], index) for item in unit.items for index in range(self.samples)]
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

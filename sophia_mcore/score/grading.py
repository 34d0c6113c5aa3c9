"""The grader as the configuration asks for it."""

from __future__ import annotations

from sophia_mcore.config.schema import Score
from sophia_mcore.records import Question
from sophia_mcore.score.judge import LanguageModelJudge
from sophia_mcore.verify.grade import Grader
from sophia_mcore.verify.types import GradeItem


def open_grader(config: Score, workers: int | None = None) -> Grader:
    """The grader of ``[score]``, with its judge if there is one; ``workers`` replaces ``score.workers``.

    Raises UsageError for a judge's prompt file that cannot be used, SophiaError when a package is missing. Its
    ``grade_many`` raises JudgeUnreachableError when the judge's endpoint does not answer.
    """
    judge = LanguageModelJudge(config.judge) if config.judge else None
    return Grader(workers or config.workers, config.timeout_seconds, config.memory_limit_mib, judge)


def grade_item(question: Question, identifier: str, response: str) -> GradeItem:
    """What the grader is given for an answer to a question."""
    return GradeItem(
        id=identifier,
        response=response,
        answer=question.answer,
        answer_type=question.answer_type,
        options=question.options,
        rules=question.source,
        question=question.question,
    )

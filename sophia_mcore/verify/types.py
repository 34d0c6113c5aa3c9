"""What goes into the grader and what comes out."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from sophia_mcore.records import VerdictName

VERIFIER = "sophia_mcore.score"
RULES_VERSION = "17"  # raise it whenever a rule changes a verdict: rescoring then shows the difference


@dataclass(frozen=True, slots=True)
class GradeItem:
    """One response and the answer it is held against.

    Example: ``GradeItem(id="a", response="The answer is \\boxed{5}.", answer="5", answer_type="integer")``.
    """

    id: str
    response: str
    answer: str
    answer_type: str = ""  # "" : inferred from the answer
    options: tuple[str, ...] = ()  # texts of a multiple choice question, in order
    rules: str = ""  # name of the benchmark whose precision applies (rules.toml); any other: the default rules
    tolerance: float | None = None  # absolute tolerance of this answer, where the benchmark gives one
    question: str = ""  # only the judge looks at it


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one item.

    ``extracted`` is the final answer found in the response ("" if none), ``seconds`` the time this answer cost
    (CPU-seconds of the worker, about 0 for the exact path and for repeated answers).
    """

    id: str
    verdict: VerdictName
    extracted: str
    answer_type: str
    seconds: float
    verifier: str
    verifier_version: str


class Judge(Protocol):
    """What the grader needs of a judge of free text, for example a language model (``score.judge``)."""

    @property
    def version(self) -> str:
        """Becomes part of the verifier's version."""

    @property
    def extracts(self) -> bool:
        """Whether it is also asked for the final answer where no rule finds one."""

    def verdict(self, question: str, answer: str, given: str) -> Future[VerdictName]:
        """Whether ``given`` means the same as ``answer``."""

    def extraction(self, question: str, response: str) -> Future[str | None]:
        """The final answer in ``response``; "" if it commits to none, None if the judge fails."""

    def close(self) -> None:
        """Drop what has not been asked yet."""

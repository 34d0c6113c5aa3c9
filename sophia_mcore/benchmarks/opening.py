"""The scorer as the configuration asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sophia_mcore.benchmarks.scoring import Scorer, Scoring
from sophia_mcore.config.schema import Score
from sophia_mcore.score.grading import open_grader
from sophia_mcore.score.judge import LanguageModelJudge


@contextmanager
def open_scorer(config: Score, scoring: Scoring) -> Iterator[Scorer]:
    """A scorer with the grader of ``[score]``, and with its judge if there is one.

    Raises UsageError for a judge's prompt file that cannot be used, SophiaError when a package is missing.
    """
    judge = LanguageModelJudge(config.judge) if config.judge else None
    try:
        with open_grader(config.model_copy(update={"judge": None})) as grader:
            yield Scorer(scoring, grader, judge)
    finally:
        if judge is not None:
            judge.close()

"""Whether the terms of the reward fit the questions and the environment, as far as files show before a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sophia_mcore.benchmarks.rows import read_any
from sophia_mcore.config.schema import Config
from sophia_mcore.config.sources import Source
from sophia_mcore.data.columns import Row, with_options
from sophia_mcore.data.sources import on_the_hub
from sophia_mcore.environments.terms import applies, require_terms
from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Question
from sophia_mcore.store.signatures import hint, texts_in

_ROWS = 10  # of each source, at least


def asked_sources(config: Config) -> tuple[str, Sequence[Source]]:
    """What the rewards are for: the stage's own questions where it has some. With the name of the setting."""
    if config.rl is not None and config.rl.questions:
        return "rl.questions", config.rl.questions
    return "data.questions", config.data.questions


def question_of(row: Row, images: tuple[str, ...] = ()) -> Question:
    """A good row as the functions see it. ``images``: digests."""
    return Question(
        id=row.id,
        question=with_options(row.question, row.options),
        answer=row.answer,
        answer_type=row.answer_type,
        images=images,
        options=row.options,
        source=row.source,
        benchmark=row.benchmark,
        details=row.details,
    )


def judges(config: Config) -> bool:
    """Whether anything is sampled that the rewards are for: not where there are pairs, or an evaluation alone."""
    return config.rl is not None or (config.train.data is None and not config.evaluate.only)


def check_terms_fit(config: Config) -> None:
    """Raise UsageError for a term that is for no question, and for one of the first questions without a term.

    Reads on until every term has a question, so that a whole source is read only where one has none. What is on the
    hub, or cannot be read, is left to the run.
    """
    terms = config.reward_terms
    if not judges(config) or all(term.only is None for term in terms):
        return
    without = {term.label for term in terms}
    read: list[Question] = []
    whole = True
    for source in asked_sources(config)[1]:
        if on_the_hub(source):
            whole = False
            continue
        try:
            for number, row in enumerate(read_any(source), start=1):
                if not row.problems:
                    read.append(question_of(row))
                    without -= {term.label for term in terms if applies(term.only, read[-1])}
                if not without and number >= _ROWS:
                    break
        except SophiaError:  # the preview of the source says it
            whole = False
    require_terms(terms, read, whole=whole)


def doubtful_steps(config: Config) -> Iterator[str]:
    """Lines about terms that read what the environment's steps have said where no step says it: always 0."""
    for term in config.reward_terms if judges(config) else ():
        if term.function != "step":
            continue
        name, where = str(term.options.get("name", "")), f"rewards.{term.label}"
        if config.rl is None:
            yield f"{where}: an answer of a round has no environment whose steps say {name!r}: it is always 0"
        elif (file := config.rl.environment.file) is None:
            environment = config.rl.environment.function
            yield f"{where}: the steps of rl.environment = {environment!r} say nothing of {name!r}: it is always 0"
        elif name not in (texts := texts_in(file)):
            near = hint(name, [text for text in sorted(texts) if text.isidentifier()])
            yield f"{where}: {file} does not mention {name!r}" + (f" ({near})" if near.startswith("did") else "")

"""Which file has the questions of the stage: its own or the run's, and those that were chosen of them. Its engines."""

from __future__ import annotations

from pathlib import Path

from sophia_mcore.config.engines import UNCOUNTED_IMAGES, Engine, with_images
from sophia_mcore.config.schema import Config
from sophia_mcore.data.held_out import contents, shared
from sophia_mcore.data.prompt_images import most_images
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.records import Question
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_shard


def checked_questions(config: Config, run: RunFolder) -> Path:
    """The checked questions that the stage begins with; it need not be there yet."""
    return run.rl.own_questions_file if config.on_policy.questions else run.questions_file


def asked_questions(config: Config, run: RunFolder) -> Path:
    """The questions that batches ask: with rl.select the chosen ones, once they are there, else the checked ones.

    Raises SophiaError if there are none.
    """
    found = checked_questions(config, run)
    for path in (run.rl.questions_file, found) if config.on_policy.selects else (found,):
        if path.is_file():
            return path
    raise SophiaError(f"{found}: no such file; `sophia rl` prepares the questions")


def read_stage_questions(config: Config, run: RunFolder) -> dict[str, Question]:
    """The chosen questions, or the run's where nothing was chosen, by id. Raises SophiaError when there are none."""
    return {question.id: question for question in read_shard(asked_questions(config, run), Question)}


def stage_engine(config: Config, run: RunFolder) -> Engine:
    """The settings of the stage's engine, with the number of images of its prompts: an environment makes its own."""
    rl = config.on_policy
    most = most_images(checked_questions(config, run), run.rl.validation_questions_file)
    return with_images(rl.engine, most if rl.one_turn else max(most, UNCOUNTED_IMAGES))


def exam_engine(config: Config, run: RunFolder) -> Engine:
    """As ``stage_engine``: what answers the evaluation questions with the stage's prompt or in its environment."""
    most = most_images(run.evaluation_questions_file)
    return with_images(config.evaluate.engine, most if config.on_policy.one_turn else max(most, UNCOUNTED_IMAGES))


def held_out_among(config: Config, run: RunFolder) -> list[str]:
    """Compares the stage's questions by text and images: a file may be a copy of another one under another name.

    Returns a line for each two sets that share some questions, which happens in large data sets. Raises UsageError if
    all validation questions are trained on, or all evaluation questions are trained on or choose the version.
    """
    rl = config.on_policy
    asked = ("rl.questions" if rl.questions else "data.questions", checked_questions(config, run))
    validation = ("rl.validation", run.rl.validation_questions_file if rl.validation else None)
    evaluation = ("evaluate.questions", run.evaluation_questions_file if config.evaluate.questions else None)
    lines = []
    for (name, file), (held_out, other), why in (
        (validation, evaluation, "choose the version"),
        (asked, evaluation, "be trained on"),
        (asked, validation, "be trained on"),
    ):
        found, are_all = shared(name, contents(file), held_out, contents(other))
        if are_all:
            raise UsageError(f"{found}; they must not {why}")
        if found:
            lines.append(f"{found}; they should not {why}")
    return lines

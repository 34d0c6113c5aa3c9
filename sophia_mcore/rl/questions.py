"""Which file has the questions of the stage: its own or the run's, and those that were chosen of them. Its engines."""

from __future__ import annotations

from pathlib import Path

from sophia_mcore.config.engines import UNCOUNTED_IMAGES, Engine, with_images
from sophia_mcore.config.schema import Config
from sophia_mcore.data.prompt_images import most_images
from sophia_mcore.errors import SophiaError
from sophia_mcore.store.layout import RunFolder


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


def stage_engine(config: Config, run: RunFolder) -> Engine:
    """The settings of the stage's engine, with the number of images of its prompts: an environment makes its own."""
    rl = config.on_policy
    most = most_images(checked_questions(config, run), run.rl.validation_questions_file)
    return with_images(rl.engine, most if rl.one_turn else max(most, UNCOUNTED_IMAGES))


def exam_engine(config: Config, run: RunFolder) -> Engine:
    """As ``stage_engine``: what answers the evaluation questions with the stage's prompt or in its environment."""
    most = most_images(run.evaluation_questions_file)
    return with_images(config.evaluate.engine, most if config.on_policy.one_turn else max(most, UNCOUNTED_IMAGES))

"""Which file has the questions of the stage: its own or the run's, and those that were chosen of them."""

from __future__ import annotations

from pathlib import Path

from sophia_mcore.config.schema import Config
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

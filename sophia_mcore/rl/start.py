"""The model that the on-policy stage starts from."""

from __future__ import annotations

from pathlib import Path

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.store.labels import BASE
from sophia_mcore.store.layout import RunFolder


def start_folder(config: Config, run: RunFolder) -> Path:
    """The folder that rl.start names, whether it is there or not."""
    start = config.on_policy.start
    return config.models.policy if start == BASE else run.exports(config.run.rounds).get(start, Path(start))


def rl_start(config: Config, run: RunFolder) -> Path:
    """The folder of the model that the on-policy stage starts from.

    Raises SophiaError when it is the export of a round that has not ended, UsageError when the folder does not exist.
    """
    start, exports = config.on_policy.start, run.exports(config.run.rounds)
    folder = start_folder(config, run)
    if start in exports and not folder.is_dir():
        raise SophiaError(f"rl.start = {start!r}: {folder} does not exist; run `sophia run` to its export first")
    if start != BASE and not folder.is_dir():
        names = ", ".join(repr(name) for name in (BASE, *exports))
        raise UsageError(f"rl.start = {start!r}: no such folder, and none of {names}")
    return folder

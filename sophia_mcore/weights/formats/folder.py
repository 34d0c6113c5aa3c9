"""Creates a folder atomically: it appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sophia_mcore.errors import UsageError
from sophia_mcore.store.atomic import write_failed
from sophia_mcore.store.lock import folder_lock

_LOCK = "lock"


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``target`` to write into. It is renamed to ``target`` when the body succeeds.

    Leftovers of a killed writer are removed first. After a failure the hidden folder is removed.

    Raises:
        UsageError: the target exists.
        SophiaError: another process writes the target, or the disk cannot be written.
    """
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already; delete it or name another folder")
    partial = target.parent / f".tmp-{target.name}"
    try:
        with folder_lock(partial / _LOCK):
            for left in partial.iterdir():
                if left.name != _LOCK:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            try:
                yield partial
                (partial / _LOCK).unlink()
                os.rename(partial, target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        raise write_failed(target, error) from error

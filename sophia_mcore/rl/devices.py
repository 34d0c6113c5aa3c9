"""Whose devices: engines and trainer of one node take turns by a lock file on the node's own disk.

Engines hold it shared while they are awake, the trainer holds it alone while its tensors are on the devices. The kernel
frees it when a holder dies.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sophia_mcore.store.atomic import write_failed
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import run_uid

MEMORY = Path("/dev/shm")  # noqa: S108 - what lies there has names of its own
_LOCK = "devices.lock"
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5


def node_folder(run: RunFolder) -> Path:
    """A folder of this node for the run, in memory where there is a /dev/shm; made by whoever needs it first."""
    parent = MEMORY if os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    return parent / folder_name(run)


def folder_name(run: RunFolder) -> str:
    """The name of a run's folder on a node."""
    return f"sophia-{run_uid(run.path)}"


def leave_node(run: RunFolder) -> None:
    """The stage has ended, with all its processes of this node: nothing of it stays in the node's memory."""
    folder = node_folder(run)
    with suppress(OSError):  # another user's, or something else of this run is still in use
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()


class DeviceLock:
    """The lock of a node, not held at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @staticmethod
    def of(run: RunFolder) -> DeviceLock:
        """The lock of this node for a run."""
        return DeviceLock(node_folder(run) / _LOCK)

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def acquire(self, *, shared: bool, waiting: Callable[[], None]) -> None:
        """Wait for the lock, calling ``waiting`` again and again, which may raise. Nothing if it is held already."""
        if self._descriptor is not None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise write_failed(self._path, error) from error
        pause = _FIRST_PAUSE_SECONDS
        try:
            while True:
                try:
                    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    waiting()
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def release(self) -> None:
        """Let the others have the devices."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

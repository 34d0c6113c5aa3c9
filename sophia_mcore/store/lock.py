"""A lock file for a folder. The kernel releases the lock when its holder dies (flock)."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.atomic import write_failed


@contextmanager
def folder_lock(path: Path | str, *, shared: bool = False, named: bool = True, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` while the body runs. The kernel frees it when the process ends, even if it is killed.

    ``shared``: any number of processes may hold the lock together, but not beside an exclusive holder.
    ``named`` False: the holder is not written into the file, so that the lock works on a full disk.
    ``wait``: wait for the other holder to finish, instead of raising.
    Raises SophiaError when another process holds the lock (with its pid, host and start), or when locking fails.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise write_failed(target, error) from error
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise SophiaError(f"{target.parent} is in use by {_holder(descriptor)}; wait for it or stop it") from None
        except OSError as error:
            raise SophiaError(f"cannot lock {target}: {error.strerror} (the filesystem must support flock)") from error
        if named:
            _write_holder(descriptor, target)  # a shared lock names its latest holder
        try:
            yield
        finally:
            if not shared:
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _write_holder(descriptor: int, target: Path) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    info = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, info.encode(), 0)
    except OSError as error:
        raise write_failed(target, error) from error


def _holder(descriptor: int) -> str:
    try:
        info = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {info['pid']} on {info['host']} since {info['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it holds the lock but has not written its name yet

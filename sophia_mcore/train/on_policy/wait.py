"""How the ranks of the on-policy trainer wait together, and the sign of life that engines look for.

Only the first rank (for devices: the first of each node) looks at files. The others wait in an exchange that is
repeated twice a minute, so that no collective operation outlives its timeout, however long engines take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from sophia_mcore.rl.devices import DeviceLock
from sophia_mcore.rl.pauses import pauses
from sophia_mcore.store.atomic import write_failed
from sophia_mcore.store.beats import repeated
from sophia_mcore.weights.publish import together

_EXCHANGE_SECONDS = 30.0
_ALIVE_SECONDS = 30.0

State = Literal["go", "wait", "stop"]


def wait_together(ready: Callable[[], bool], stop_asked: Callable[[], bool]) -> bool:
    """Wait until ``ready`` on every rank; False as soon as any rank is asked to stop. All ranks call it together.

    A rank that has nothing to look at passes a ``ready`` that is true at once. What ``ready`` raises (SophiaError,
    OSError) is raised on all ranks.
    """
    while True:
        states = together(lambda: _look(ready, stop_asked))
        if "stop" in states:
            return False
        if "wait" not in states:
            return True


def _look(ready: Callable[[], bool], stop_asked: Callable[[], bool]) -> State:
    until, wait = time.monotonic() + _EXCHANGE_SECONDS, pauses()
    while not stop_asked():
        if ready():
            return "go"
        pause = next(wait)
        if time.monotonic() + pause > until:
            return "wait"
        time.sleep(pause)
    return "stop"


def take_devices(lock: DeviceLock | None, stop_asked: Callable[[], bool]) -> bool:
    """Wait until no engine uses the devices of any node; False when asked to stop. All ranks call it together."""
    return wait_together(lambda: lock is None or _try(lock), stop_asked)


def _try(lock: DeviceLock) -> bool:
    def held_by_others() -> None:
        raise _HeldError

    try:
        lock.acquire(shared=False, waiting=held_by_others)
    except _HeldError:
        return False
    return True


class _HeldError(Exception):
    pass


@contextmanager
def sign_of_life(path: Path | None) -> Iterator[None]:
    """While open, ``path`` is touched twice a minute; None: by another rank."""
    if path is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise write_failed(path, error) from error
    with repeated(path.touch, _ALIVE_SECONDS, "sign of life"):
        yield

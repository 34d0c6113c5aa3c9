"""A process that dies with its parent, even when that is killed by SIGKILL (Linux only)."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def dies_with(parent: int, number: signal.Signals) -> Callable[[], None]:
    """A function that asks the kernel to send ``number`` to the calling process when ``parent`` is gone.

    Call it in a child of ``parent`` (also between fork and exec: the library is loaded beforehand). It ends the
    child at once when the parent is gone already.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return ask

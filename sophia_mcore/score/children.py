"""Further processes that work on the same units as this one, for as long as this one lives."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from sophia_mcore.verify.pool import module_environment

END_SECONDS = 30.0


@contextlib.contextmanager
def helpers(count: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """``count`` processes that do the job they are given (see ``score.helper``) while the body runs.

    The body gets the function that gives it, so that their interpreters start while it prepares. They end when the
    body does, or when this process dies. One that fails is not missed: the units it held are free again, and the
    error is met by this process too.
    """
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "sophia_mcore.score.helper"],
            env=module_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(count)
    ]

    def give(job: dict[str, Any]) -> None:
        for child in children:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(job).encode() + b"\n")
                child.stdin.flush()

    try:
        yield give
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(END_SECONDS)
    finally:
        for child in children:
            child.kill()
            child.wait()
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()


def end_with_parent() -> None:
    """End this process at once when its standard input closes, as it does when the parent dies."""

    def watch() -> None:
        # not sys.stdin.buffer: its lock, held here at the end, makes Python wait a second and then abort
        while os.read(sys.stdin.fileno(), 1 << 12):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

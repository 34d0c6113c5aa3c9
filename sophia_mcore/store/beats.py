"""Something that is done again and again, in a thread, while other work goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def repeated(beat: Callable[[], object], seconds: float, name: str) -> Iterator[None]:
    """Call ``beat`` every ``seconds`` while the body runs, in a thread called ``name``.

    What fails with an OSError is tried again next time.
    """
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds):
            with suppress(OSError):
                beat()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

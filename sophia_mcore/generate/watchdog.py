"""Leases that are renewed only while there is progress, and the end of a process that makes none.

A thread that renews a lease whatever happens would hold a hung engine's units for ever.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sophia_mcore.errors import EXIT_LOST, SophiaError
from sophia_mcore.store.claims import Claim

_LONGEST_BEAT_SECONDS = 5.0


class Watchdog:
    """Renews the leases of the claims that are held; touches ``alive_file`` while this process can still do so.

    ``stall_seconds``: without a step for so long while an engine samples, the process gives its units back and ends
    with ``errors.EXIT_LOST``.
    """

    def __init__(
        self, alive_file: Path, stall_seconds: float, lease_seconds: float, *, end: Callable[[int], object] = os._exit
    ) -> None:
        self._alive_file = alive_file
        self._stall_seconds = stall_seconds
        self._end = end
        self._claims: dict[str, Claim] = {}
        self._sampling = False
        self._steps = 0
        self._moved = time.monotonic()
        self._stop = threading.Event()
        beat = min(lease_seconds / 4, stall_seconds / 4, _LONGEST_BEAT_SECONDS)
        self._thread = threading.Thread(target=self._beat, args=(beat,), name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._alive_file.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(OSError):
            self._alive_file.unlink(missing_ok=True)

    def hold(self, claim: Claim) -> None:
        """Renew the lease of ``claim`` from now on."""
        self._claims[_name(claim)] = claim

    def drop(self, claim: Claim) -> None:
        """``claim`` has ended."""
        self._claims.pop(_name(claim), None)

    @property
    def held(self) -> list[Claim]:
        """The claims whose lease is renewed."""
        return list(self._claims.values())

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """While the body runs, progress is what ``moved`` tells; outside, this thread renews unasked."""
        self.moved()
        self._sampling = True
        try:
            yield
        finally:
            self._sampling = False

    def moved(self) -> None:
        """Every running text has got a token."""
        self._steps += 1
        self._moved = time.monotonic()

    def _beat(self, seconds: float) -> None:
        seen = -1
        while not self._stop.wait(seconds):
            with suppress(OSError):
                self._alive_file.touch()
            still = time.monotonic() - self._moved
            if self._sampling and still > self._stall_seconds:
                self._give_up(still)
                return
            if not self._sampling or self._steps != seen:
                seen = self._steps
                for claim in self.held:
                    with suppress(OSError):
                        claim.heartbeat()

    def _give_up(self, still: float) -> None:
        error = SophiaError(f"the engine hangs: no token for {still:.0f} s (rl.stall_seconds)")
        for claim in self.held:
            with suppress(OSError, SophiaError):
                claim.fail(error)
        with suppress(OSError):
            self._alive_file.unlink(missing_ok=True)
        print(f"error: {error}", file=sys.stderr, flush=True)
        self._end(EXIT_LOST)


def _name(claim: Claim) -> str:
    return f"{claim.unit.id}.{claim.attempt}.{id(claim)}"

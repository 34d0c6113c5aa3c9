"""The loop over work units: claim a unit, work while a thread renews the lease, write its shard; until all are done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.claims import Claim, Unit, UnitQueue, units_of
from sophia_mcore.store.failures import Failure

__all__ = ["Claim", "Progress", "Report", "Unit", "UnitQueue", "run_units", "units_of"]

Report = Callable[[int], None]  # called with the number of items of the unit that are done so far
Progress = Callable[[int, int], None]  # called with the items that all processes have done, and the number of all items

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 15.0
_PROGRESS_LISTING_SECONDS = 2.0
_UNITS_PER_SECOND = 200  # progress lists a folder of n units at most once every n / 200 seconds


def run_units(
    queue: UnitQueue,
    record_type: type,
    work: Callable[[Unit, Report], Sequence[Any]],
    progress: Progress | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    wait: bool = True,
) -> int:
    """Claim units and work on them until none is left. Returns how many units this process finished.

    ``work(unit, report)`` returns the unit's records. A thread renews the lease while ``work`` runs. When ``work``
    raises, the unit is released and the exception propagates. ``wait``: stay until other processes have finished their
    units, and take over the units of owners that die. Without it, return as soon as no unit is free.

    ``queue.attempts`` > 1: a failed unit goes back to the queue, and this process works on the other units. A unit that
    has failed ``attempts`` times is not tried again. At the end SophiaError says how many units failed and why the
    first one did. When ``attempts`` different units fail in a row, the fault is probably in this process: it raises.
    """
    meter = _ItemsDone(queue, progress)
    finished, pause = 0, _FIRST_PAUSE_SECONDS
    in_a_row: set[str] = set()  # units that have failed since the last success
    try:
        while True:
            meter.refresh()
            claim = queue.claim()
            if claim is not None:
                try:
                    records = _work_on(claim, work, meter)
                except Exception:
                    in_a_row.add(claim.unit.id)
                    if queue.attempts == 1 or len(in_a_row) >= queue.attempts:
                        raise
                else:  # a failed write is not the unit's fault: it raises here, since the next write would fail too
                    finished += claim.finish(records, record_type, metadata)
                    meter.add(claim.unit)
                    in_a_row.clear()
                pause = _FIRST_PAUSE_SECONDS
            elif not wait or queue.remaining() == len(queue.given_up()):
                meter.refresh(at_once=True)
                _raise_if_failed(queue.given_up(), len(queue.units))
                return finished
            else:
                time.sleep(pause)
                pause = min(2 * pause, queue.lease_seconds / 4, _LONGEST_PAUSE_SECONDS)
    finally:
        with suppress(SophiaError, OSError):  # a failed clean-up must not hide the error that ended the work
            queue.close()


def _work_on(claim: Claim, work: Callable[[Unit, Report], Sequence[Any]], meter: _ItemsDone) -> Sequence[Any]:
    try:
        with _heartbeats(claim):
            return work(claim.unit, meter.report)
    except Exception as error:
        claim.fail(error)
        raise
    except BaseException:
        claim.release()
        raise


def _raise_if_failed(failures: Sequence[Failure], units: int) -> None:
    if failures:
        first = failures[0]
        raise SophiaError(
            f"{len(failures)} of {units} work units failed, {first.unit} after {first.attempts} attempts, "
            f"on {first.host}: {first.error}"
        )


class _ItemsDone:
    """Counts the items done by all processes: the last listing plus this process's own since. Never goes down."""

    def __init__(self, queue: UnitQueue, progress: Progress | None) -> None:
        self._queue = queue
        self._progress = progress
        self._total = sum(len(unit.items) for unit in queue.units.values())
        self._done: set[str] = set()
        self._items = 0
        self._shown = 0
        self._next = 0.0

    def refresh(self, at_once: bool = False) -> None:
        """List the finished units, at a limited rate: a folder may hold 100,000 of them."""
        if self._progress is None or (time.monotonic() < self._next and not at_once):
            return
        start = time.monotonic()
        self._done |= self._queue.done_units()
        self._items = sum(len(self._queue.units[unit_id].items) for unit_id in self._done)
        end = time.monotonic()
        pause = max(_PROGRESS_LISTING_SECONDS, 50 * (end - start), len(self._queue.units) / _UNITS_PER_SECOND)
        self._next = end + pause
        self._show(self._items)

    def report(self, items: int) -> None:
        self._show(self._items + items)

    def add(self, unit: Unit) -> None:
        if unit.id not in self._done:
            self._done.add(unit.id)
            self._items += len(unit.items)
        self._show(self._items)

    def _show(self, items: int) -> None:
        self._shown = max(self._shown, items)
        if self._progress is not None:
            self._progress(self._shown, self._total)


@contextmanager
def _heartbeats(claim: Claim) -> Iterator[None]:
    """Renew the lease four times per lease period while the body runs. A failed renewal is tried again next time."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(claim.lease_seconds / 4):
            with suppress(OSError):
                claim.heartbeat()

    thread = threading.Thread(target=beat, name=f"heartbeat {claim.unit.id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

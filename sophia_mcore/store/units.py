"""The loop over work units: claim a unit, work while a thread renews the lease, write its shard; until all are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.beats import repeated
from sophia_mcore.store.claims import Claim, Unit, UnitQueue, units_of
from sophia_mcore.store.failures import Failure

__all__ = ["Claim", "Held", "Progress", "Report", "Unit", "UnitQueue", "run_joined", "run_units", "units_of"]

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

    def one(unit: Unit, held: Held) -> None:
        try:
            records = work(unit, held.report)
        except Exception as error:
            held.fail(unit, error)
        else:
            held.finish(unit, records)

    return run_joined(queue, record_type, one, progress, metadata=metadata, wait=wait)


def run_joined(
    queue: UnitQueue,
    record_type: type,
    work: Callable[[Unit, Held], None],
    progress: Progress | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    wait: bool = True,
) -> int:
    """Like ``run_units``, for work that holds several units at the same time.

    ``work(unit, held)`` is called with a claimed unit. It may claim further units with ``held.claim``. It returns when
    ``held.finish`` or ``held.fail`` was called for each of them. When it raises, all units that it holds are released.
    """
    meter = _ItemsDone(queue, progress)
    held = Held(queue, record_type, metadata, meter)
    pause = _FIRST_PAUSE_SECONDS
    try:
        while True:
            unit = held.claim()
            if unit is not None:
                with repeated(queue.renew, queue.lease_seconds / 4, "heartbeat"):
                    work(unit, held)
                pause = _FIRST_PAUSE_SECONDS
            elif not wait or queue.remaining() == len(queue.given_up()):
                meter.refresh(at_once=True)
                _raise_if_failed(queue.given_up(), len(queue.units))
                return held.finished
            else:
                time.sleep(pause)
                pause = min(2 * pause, queue.lease_seconds / 4, _LONGEST_PAUSE_SECONDS)
    finally:
        held.release()
        with suppress(SophiaError, OSError):  # a failed clean-up must not hide the error that ended the work
            queue.close()


class Held:
    """The units of one queue that this process holds at the same time."""

    def __init__(
        self, queue: UnitQueue, record_type: type, metadata: Mapping[str, Any] | None, meter: _ItemsDone
    ) -> None:
        self._queue = queue
        self._record_type = record_type
        self._metadata = metadata
        self._meter = meter
        self._claims: dict[str, Claim] = {}
        self._in_a_row: set[str] = set()  # units that have failed since the last success
        self.finished = 0

    def claim(self) -> Unit | None:
        """Claim a further unit; None if no unit is free."""
        self._meter.refresh()  # one call of work can take the whole phase
        claim = self._queue.claim()
        if claim is None:
            return None
        self._claims[claim.unit.id] = claim
        return claim.unit

    def report(self, items: int) -> None:
        """Report how many items of all units that are held are done so far."""
        self._meter.report(items)

    def finish(self, unit: Unit, records: Sequence[Any], metadata: Mapping[str, Any] | None = None) -> None:
        """Write the unit's shard. ``metadata``: of this unit only, added to that of the queue.

        Raises SophiaError when writing fails. That is not the unit's fault, and the next shard would fail too.
        """
        claim = self._claims.pop(unit.id)
        self.finished += claim.finish(records, self._record_type, {**(self._metadata or {}), **(metadata or {})})
        self._meter.add(unit)
        self._in_a_row.clear()

    def fail(self, unit: Unit, error: Exception) -> None:
        """Release the unit as failed. Raises ``error`` if this process should stop (see ``run_units``)."""
        self._claims.pop(unit.id).fail(error)
        self._in_a_row.add(unit.id)
        if self._queue.attempts == 1 or len(self._in_a_row) >= self._queue.attempts:
            raise error

    def release(self) -> None:
        """Release all units that are still held; any process may claim them at once."""
        for claim in self._claims.values():
            claim.release()
        self._claims.clear()


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

"""Work units that any number of processes on a shared filesystem divide among themselves.

    FOLDER/<unit>.parquet              the unit is done if and only if this file exists
    FOLDER/claims/<unit>.<attempt>     hard link to the owner file of the process that holds, or held, the unit
    FOLDER/claims/.owner-<nonce>       one per queue: JSON (pid, host, since); its modification time is the lease

A claim is one exclusive hard link, an atomic operation. Touching the owner file renews all claims of its owner.
An owner is dead when it ran on this machine and its process is gone, or when its lease has run out. Another process
then claims the unit as the next attempt; if several try, one gets the link. An attempt number is never used twice while
the unit is unfinished: a release replaces the link by a file that says "free". So a unit has one holder at a time.
A holder that was stopped for longer than its lease cannot make a second result either: a shard is written only once.

Filesystem operations: one listing of both folders per queue. Per unit: look for the shard, link, look again, and unlink
at the end. One touch per heartbeat. Owners try units in different random orders, unless results are wanted in order. A
unit that is already taken costs one or two operations; after some of these in a row the queue lists again. With 200
owners and 6,000 units that makes 6 operations per unit.
If no unit is free, each try lists both folders again and reads every other owner file once per lease.
Leases are compared by the filesystem's own clock, so the clocks of hosts may differ.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.store import atomic, shards
from sophia_mcore.store.failures import Failure, read_failures, record_failure
from sophia_mcore.store.owner import Owner

_UNIT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")
CLAIMS = "claims"  # folder of the claims, beside the shards
_FREE = "free"
_MISSES = 8  # list again after max(8, n / 1000) misses: a listing of n names costs about n / 1000 requests
_LISTINGS_PER_CLAIM = 3


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work: ``items`` are identifiers that mean something to the phase (image sets, questions)."""

    id: str
    items: tuple[str, ...]


def units_of(items: Iterable[str], size: int) -> list[Unit]:
    """Split ``items`` into units of at most ``size`` consecutive items. A unit's id holds a hash of its items.

    >>> [(unit.id[:6], unit.items) for unit in units_of(["a", "b", "c"], 2)]
    [('000000', ('a', 'b')), ('000001', ('c',))]
    """
    everything = list(items)
    parts = [tuple(everything[start : start + size]) for start in range(0, len(everything), size)]
    hashes = [sha256("\n".join(part).encode()).hexdigest()[:8] for part in parts]
    return [Unit(f"{i:06d}-{digest}", part) for i, (part, digest) in enumerate(zip(parts, hashes, strict=True))]


class Claim:
    """The right of this process to work on ``unit``. ``attempt``: how many holders the unit had before."""

    def __init__(self, queue: UnitQueue, unit: Unit, attempt: int) -> None:
        self.unit = unit
        self.attempt = attempt
        self.lease_seconds = queue.lease_seconds
        self._queue = queue

    def heartbeat(self) -> None:
        """Renew the lease of all claims of this queue. Raises OSError when the filesystem does not answer."""
        self._queue.renew()

    def finish(self, records: Sequence[Any], record_type: type, metadata: Mapping[str, Any] | None = None) -> bool:
        """Write the unit's shard and remove the claim. Returns False if another process finished the unit first."""
        try:
            shards.write_shard(self._queue.shard(self.unit), records, record_type, metadata)
        except FileExistsError:
            self._queue.clear(self)
            return False
        except BaseException:
            self._queue.free(self)
            raise
        self._queue.clear(self)
        return True

    def release(self) -> None:
        """Release the unfinished unit; any process may claim it at once."""
        self._queue.free(self)

    def fail(self, error: Exception) -> None:
        """Release the unit as failed. The failure is counted if ``UnitQueue.attempts`` is more than 1."""
        if self._queue.attempts > 1:
            with suppress(SophiaError):  # a full disk must not hide why the work failed
                record_failure(self._queue.folder, self.unit.id, error)
        self._queue.free(self)


class UnitQueue:
    """The work units of one folder, as one owner sees them. Only ``renew`` may be called by several threads at once.

    ``lease_seconds``: an owner on another machine counts as dead this long after its last heartbeat.
    ``attempts`` > 1: a unit that has failed this often is not handed out again.
    ``in_order``: hand out the first units first. Meant for few owners, since all of them try the same unit.
    Raises SophiaError when the folder cannot be used or holds shards of other units (a changed configuration).
    """

    def __init__(
        self,
        folder: Path | str,
        units: Iterable[Unit],
        owner: str = "",
        lease_seconds: float = 120.0,
        *,
        attempts: int = 1,
        in_order: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.units = {unit.id: unit for unit in _checked(units)}
        self.owner = Owner.this_process(owner)
        self.lease_seconds = lease_seconds
        self.attempts = attempts
        self._claims = self.folder / CLAIMS
        self._owner_file = self._claims / f".owner-{self.owner.nonce}"
        self._random = None if in_order else random.Random(self.owner.nonce)  # noqa: S311 - an order, not a secret
        self._candidates: list[tuple[str, int]] = []  # unit id, attempt to make
        self._leases: dict[int, tuple[Owner, float]] = {}  # inode of an owner file -> owner, end of its lease
        self._misses = 0
        self._max_misses = max(_MISSES, len(self.units) // 1000)
        self._list_done()

    def shard(self, unit: Unit) -> Path:
        """Path of the shard that holds the unit's records once the unit is done."""
        return shards.unit_shard(self.folder, unit.id)

    def remaining(self) -> int:
        """How many units are not done (one listing)."""
        return len(self.units) - len(self._list_done())

    def done(self) -> bool:
        """Whether every unit is done (one listing)."""
        return self.remaining() == 0

    def done_units(self) -> set[str]:
        """Ids of the finished units (one listing)."""
        return self._list_done()

    def given_up(self) -> list[Failure]:
        """The last failure of each unfinished unit that has failed ``attempts`` times (two listings)."""
        failures = read_failures(self.folder) if self.attempts > 1 else {}
        spent = [failure for failure in failures.values() if failure.attempts >= self.attempts]
        done = self._list_done() if spent else set()
        return [failure for failure in spent if failure.unit not in done]

    def claimed(self) -> int:
        """How many unfinished units are held by a live owner (two listings; reads each owner file once)."""
        held, inodes = self._list_held()
        done = self._list_done()
        held = {unit_id: attempt for unit_id, attempt in held.items() if unit_id not in done}
        return len(held) - len(self._abandoned(held, inodes, time.time()))

    def claim(self) -> Claim | None:
        """Claim a unit. Returns None when every unit is done, has failed too often, or is held by a live owner.

        Raises SophiaError when the folder cannot be written or has no hard links.
        """
        for _ in range(_LISTINGS_PER_CLAIM):  # stale listings of a network filesystem must not make this loop forever
            if not self._candidates or self._misses >= self._max_misses:
                self._candidates = self._list_candidates()
                if not self._candidates:
                    return None
            self._misses = 0
            while self._candidates and self._misses < self._max_misses:
                unit_id, attempt = self._candidates.pop()
                if self._try(unit_id, attempt):
                    return Claim(self, self.units[unit_id], attempt)
                self._misses += 1
        return None

    def renew(self) -> float:
        """Renew the lease; returns the filesystem's time in seconds."""
        os.utime(self._owner_file)
        return os.stat(self._owner_file).st_mtime

    def clear(self, claim: Claim) -> None:
        """Remove the claims on a finished unit."""
        for attempt in range(claim.attempt + 1):
            (self._claims / f"{claim.unit.id}.{attempt}").unlink(missing_ok=True)

    def free(self, claim: Claim) -> None:
        """Mark an unfinished unit as free for the next attempt. On a full disk it is free once this process ends."""
        path = self._claims / f"{claim.unit.id}.{claim.attempt}"
        with suppress(SophiaError):  # report the error that ended the work, not this one
            if path.exists():
                atomic.write_text(path, _FREE)

    def close(self) -> None:
        """Remove this owner's file. If all units are done, remove the claims that are left too."""
        self._owner_file.unlink(missing_ok=True)
        if not self.done():
            return
        for name, _ in _entries(self._claims):
            path = self._claims / name
            is_owner = name.startswith((".owner-", atomic.TEMPORARY_PREFIX))  # or a late process writes its file now
            if not is_owner or self._is_dead(path, time.time()):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self._claims.rmdir()  # succeeds for the last owner

    def _try(self, unit_id: str, attempt: int) -> bool:
        path = self._claims / f"{unit_id}.{attempt}"
        shard = self.shard(self.units[unit_id])
        if shard.exists():
            return False
        if attempt and not self._is_dead(self._claims / f"{unit_id}.{attempt - 1}", self.renew()):
            return False  # its owner has renewed its lease since the listing
        try:
            atomic.link_once(self._owner_file, path)
        except (FileExistsError, FileNotFoundError):
            return False
        except OSError as error:
            raise atomic.write_failed(path, error) from error
        if shard.exists():  # another process finished it before the link was made
            path.unlink(missing_ok=True)
            return False
        return True

    def _list_done(self) -> set[str]:
        names = _names(self.folder)
        found = {name.removesuffix(".parquet") for name in names if name.endswith(".parquet") and name[0] != "."}
        strange = found - self.units.keys()
        if strange:
            raise SophiaError(
                f"{self.folder} holds {len(strange)} shards of other work units, such as {min(strange)}.parquet: "
                "the questions or the unit size have changed; use another run folder or remove this one"
            )
        return found

    def _list_candidates(self) -> list[tuple[str, int]]:
        """(unit id, attempt) to try, last first: unclaimed units if there are any, else the units of dead owners."""
        done = self._list_done()
        if len(done) == len(self.units):
            return []
        held, inodes = self._list_held()
        if not self._owner_file.exists():
            self._write_owner_file()
        spent = {failure.unit for failure in self.given_up()}
        todo = [unit_id for unit_id in self.units if unit_id not in done and unit_id not in spent]
        found = [(unit_id, 0) for unit_id in todo if unit_id not in held]
        if not found:
            found = self._abandoned({u: held[u] for u in todo if u in held}, inodes, self.renew())
        if self._random is None:
            return found[::-1]
        self._random.shuffle(found)
        return found

    def _list_held(self) -> tuple[dict[str, int], dict[tuple[str, int], int]]:
        """Latest attempt at each unit, and the inode of each claim. All claims of one owner have the same inode."""
        held: dict[str, int] = {}
        inodes: dict[tuple[str, int], int] = {}
        for name, inode in _entries(self._claims):
            unit_id, _, attempt = name.rpartition(".")
            if unit_id in self.units and attempt.isdigit():
                held[unit_id] = max(held.get(unit_id, -1), int(attempt))
                inodes[unit_id, int(attempt)] = inode
        return held, inodes

    def _abandoned(
        self, held: Mapping[str, int], inodes: Mapping[tuple[str, int], int], now: float
    ) -> list[tuple[str, int]]:
        """(unit id, next attempt) of the units that are free or held by a dead owner. Reads each owner file once."""
        verdicts: dict[int, bool] = {}  # inode of an owner file -> whether the owner is dead
        found = []
        for unit_id, attempt in held.items():
            inode = inodes[unit_id, attempt]
            if inode not in verdicts:
                verdict = self._is_dead(self._claims / f"{unit_id}.{attempt}", now, inode)
                if verdict is None:
                    continue  # gone since the listing
                verdicts[inode] = verdict
            if verdicts[inode]:
                found.append((unit_id, attempt + 1))
        return found

    def _is_dead(self, claim: Path, now: float, inode: int | None = None) -> bool | None:
        """Whether the owner of a claim is dead; None if the claim is gone. ``now``: the filesystem's time in seconds.

        With ``inode``, the owner file is not read again before the lease that was read last has run out.
        """
        known = None if inode is None else self._leases.get(inode)
        if known is not None and now < known[1]:
            return known[0].is_known_dead()
        try:
            with open(claim) as file:
                text = file.read()
                touched = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        owner = Owner.parse(text)
        if owner is None:
            return text == _FREE or now - touched > self.lease_seconds
        if owner.nonce == self.owner.nonce:
            return False
        if inode is not None:
            self._leases[inode] = owner, touched + self.lease_seconds
        return owner.is_known_dead() or now - touched > self.lease_seconds

    def _write_owner_file(self) -> None:
        attempts_left = 3
        while True:
            try:
                return atomic.write_text(self._owner_file, self.owner.to_json())
            except SophiaError:
                attempts_left -= 1
                if self._claims.is_dir() or not attempts_left:
                    raise  # otherwise another owner has just removed the folder because all work is done: try again


def _checked(units: Iterable[Unit]) -> list[Unit]:
    listed = list(units)
    for unit in listed:
        if not _UNIT_ID.fullmatch(unit.id):
            raise SophiaError(f"work unit {unit.id!r}: an id may hold letters, digits, '.', '_' and '-' only")
    if len({unit.id for unit in listed}) != len(listed):
        raise SophiaError("two work units have the same id")
    return listed


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SophiaError(f"cannot list {folder}: {error.strerror}") from error


def _entries(folder: Path) -> list[tuple[str, int]]:
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, entry.inode()) for entry in entries]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SophiaError(f"cannot list {folder}: {error.strerror}") from error

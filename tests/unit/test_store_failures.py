"""Units that fail cost only themselves when attempts are allowed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Kept
from sophia_mcore.store import atomic
from sophia_mcore.store.failures import forget_failures, read_failures
from sophia_mcore.store.units import Unit, UnitQueue, run_units

UNITS = [Unit(f"u{i}", (str(i),)) for i in range(6)]


def work_without(bad: set[str]):
    tried: list[str] = []

    def work(unit, report):
        tried.append(unit.id)
        if unit.id in bad:
            raise ValueError("cannot be done\nsecond line")
        return []

    return work, tried


def test_one_bad_unit_is_tried_and_left(tmp_path: Path) -> None:
    work, tried = work_without({"u3"})
    with pytest.raises(
        SophiaError, match=r"1 of 6 work units failed, u3 after 3 attempts, on .*: ValueError: cannot be done$"
    ):
        run_units(UnitQueue(tmp_path, UNITS, attempts=3), Kept, work)
    assert tried.count("u3") == 3 and len(tried) == 8
    assert len(list(tmp_path.glob("*.parquet"))) == 5

    with pytest.raises(SophiaError, match="u3 after 3 attempts"):  # another task does not try again
        run_units(UnitQueue(tmp_path, UNITS, attempts=3), Kept, work)
    assert tried.count("u3") == 3
    assert read_failures(tmp_path)["u3"].attempts == 3

    assert forget_failures(tmp_path) == 1
    work, tried = work_without(set())
    assert run_units(UnitQueue(tmp_path, UNITS, attempts=3), Kept, work) == 1
    assert tried == ["u3"]


def test_failures_in_a_row_are_the_process_own(tmp_path: Path) -> None:
    work, tried = work_without({unit.id for unit in UNITS})
    with pytest.raises(ValueError, match="cannot be done"):
        run_units(UnitQueue(tmp_path, UNITS, attempts=3), Kept, work)
    assert len(tried) == 3


def test_without_attempts_the_first_failure_ends_it(tmp_path: Path) -> None:
    work, tried = work_without({unit.id for unit in UNITS})
    with pytest.raises(ValueError, match="cannot be done"):
        run_units(UnitQueue(tmp_path, UNITS), Kept, work)
    assert len(tried) == 1 and not (tmp_path / "failures").exists()


def test_a_full_disk_wastes_one_unit_of_work_and_no_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    work, tried = work_without(set())
    queue = UnitQueue(tmp_path, UNITS, lease_seconds=0.2, attempts=3)
    queue.claim().release()  # its own file is there before the disk is full
    monkeypatch.setattr(atomic.os, "fsync", refuse)
    with pytest.raises(SophiaError, match="No space left on device"):
        run_units(queue, Kept, work)
    assert len(tried) == 1 and read_failures(tmp_path) == {}
    monkeypatch.undo()
    assert run_units(UnitQueue(tmp_path, UNITS, lease_seconds=0.2, attempts=3), Kept, work) == 6

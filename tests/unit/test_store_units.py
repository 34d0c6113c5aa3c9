"""Work units: every unit ends exactly once, whoever dies, stalls or joins."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Question
from sophia_mcore.store import atomic, shards
from sophia_mcore.store import units as units_module
from sophia_mcore.store.owner import Owner
from sophia_mcore.store.units import Held, Unit, UnitQueue, run_joined, run_units, units_of

ITEMS = [f"q{i}" for i in range(60)]
UNITS = units_of(ITEMS, 3)


def records_of(unit: Unit) -> list[Question]:
    return [Question(id=item, question="?", answer=item) for item in unit.items]


def work(unit: Unit, report: Callable[[int], None]) -> list[Question]:
    return records_of(unit)


def queue(folder: Path, units: list[Unit] = UNITS, lease_seconds: float = 60.0, owner: str = "") -> UnitQueue:
    return UnitQueue(folder, units, owner=owner, lease_seconds=lease_seconds)


def pretend_other_machine(queue: UnitQueue) -> None:
    """Make the owner of a queue one whose process nobody here can look up: only its lease counts."""
    path = queue._owner_file
    path.write_text(json.dumps(json.loads(queue.owner.to_json()) | {"machine": "elsewhere", "pid": 1}))


def expire(queue: UnitQueue) -> None:
    os.utime(queue._owner_file, (1.0, 1.0))


def all_records(folder: Path) -> list[str]:
    return [record.id for record in shards.read_folder(folder, Question)]


def test_one_process_does_everything_and_leaves_no_claims(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def reporting(unit: Unit, report: Callable[[int], None]) -> list[Question]:
        report(1)
        return records_of(unit)

    assert run_units(queue(tmp_path), Question, reporting, lambda done, total: seen.append((done, total))) == len(UNITS)
    assert all_records(tmp_path) == ITEMS
    assert not (tmp_path / "claims").exists()
    assert seen[-1] == (60, 60) and all(total == 60 for _, total in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert run_units(queue(tmp_path), Question, work) == 0


def test_progress_counts_other_processes_while_work_holds_several_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units_module, "_PROGRESS_LISTING_SECONDS", 0.0)
    seen: list[int] = []

    def whole_phase(unit: Unit, held: Held) -> None:
        run_units(queue(tmp_path, owner="another"), Question, work, wait=False)
        patience = time.monotonic() + 60.0
        while seen[-1] < len(ITEMS) - len(unit.items) and time.monotonic() < patience:
            assert held.claim() is None
            time.sleep(0.01)
        held.finish(unit, records_of(unit))

    assert run_joined(queue(tmp_path), Question, whole_phase, lambda done, total: seen.append(done)) == 1
    assert len(ITEMS) - 3 in seen and seen[-1] == len(ITEMS)


def test_a_claimed_unit_is_not_claimed_again(tmp_path: Path) -> None:
    first, second = queue(tmp_path), queue(tmp_path)
    taken = [first.claim() for _ in range(10)] + [second.claim() for _ in range(10)]
    assert len({claim.unit.id for claim in taken if claim}) == len(UNITS)
    assert first.claim() is None and second.claim() is None
    assert first.remaining() == len(UNITS) and not first.done()


def test_units_are_handed_out_in_order_where_that_is_wanted(tmp_path: Path) -> None:
    first, second = (UnitQueue(tmp_path, UNITS, in_order=True) for _ in range(2))
    claims = [one.claim() for _ in range(len(UNITS) // 2) for one in (first, second)]
    assert [claim.unit for claim in claims if claim] == UNITS


def test_released_units_are_free_for_anybody(tmp_path: Path) -> None:
    first, second = queue(tmp_path, UNITS[:1]), queue(tmp_path, UNITS[:1])
    for attempt in range(4):
        claim = (first if attempt % 2 else second).claim()
        assert claim is not None and claim.attempt == attempt
        claim.release()
    claim = first.claim()
    assert claim is not None
    claim.finish(records_of(claim.unit), Question)
    assert first.done() and second.claim() is None


def test_a_live_owner_elsewhere_is_left_alone_until_its_lease_ends(tmp_path: Path) -> None:
    far, here = queue(tmp_path, UNITS[:2]), queue(tmp_path, UNITS[:2])
    assert far.claim() and far.claim()
    pretend_other_machine(far)
    assert here.claim() is None
    assert here.claimed() == 2
    expire(far)
    assert here.claimed() == 2  # seen alive a moment ago: not looked at again before its lease can have run out
    here = queue(tmp_path, UNITS[:2])
    assert here.claimed() == 0
    claim = here.claim()
    assert claim is not None and claim.attempt == 1
    far.renew()  # a heartbeat renews what is left to it
    assert here.claim() is None


def test_of_many_takers_of_an_expired_lease_one_wins(tmp_path: Path) -> None:
    far = queue(tmp_path, UNITS[:5])
    for _ in range(5):
        far.claim()
    pretend_other_machine(far)
    expire(far)
    takers = [queue(tmp_path, UNITS[:5]) for _ in range(8)]
    for taker in takers:  # all of them have seen the expired leases before one of them acts
        taker._candidates = taker._list_candidates()
        assert len(taker._candidates) == 5
    won: list[str] = []

    def take(taker: UnitQueue) -> None:
        while claim := taker.claim():
            won.append(claim.unit.id)

    threads = [threading.Thread(target=take, args=(taker,)) for taker in takers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == sorted(unit.id for unit in UNITS[:5])


def test_a_taker_with_an_old_listing_cannot_take_a_unit_that_changed_hands(tmp_path: Path) -> None:
    """Holder dies; A and B see it; A takes, releases; C takes; B must not get it on the strength of what it saw."""
    dead, a, b, c = (queue(tmp_path, UNITS[:1]) for _ in range(4))
    assert dead.claim()
    pretend_other_machine(dead)
    expire(dead)
    b._candidates = b._list_candidates()
    claim = a.claim()
    assert claim is not None
    claim.release()
    assert c.claim() is not None
    assert b.claim() is None


def test_a_stalled_holder_does_not_make_a_second_result(tmp_path: Path) -> None:
    slow, fast = queue(tmp_path, UNITS[:1]), queue(tmp_path, UNITS[:1])
    late = slow.claim()
    pretend_other_machine(slow)
    expire(slow)
    early = fast.claim()
    assert late is not None and early is not None
    assert early.finish(records_of(early.unit), Question) is True
    before = (tmp_path / f"{UNITS[0].id}.parquet").stat().st_ino
    assert late.finish(records_of(late.unit), Question) is False
    assert (tmp_path / f"{UNITS[0].id}.parquet").stat().st_ino == before


def test_a_unit_finished_while_it_is_being_claimed_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = atomic.link_once

    def finished_just_before(existing: Path, new: Path) -> None:
        monkeypatch.undo()
        shards.write_shard(tmp_path / f"{UNITS[0].id}.parquet", [], Question)
        link(existing, new)

    late = queue(tmp_path, UNITS[:1])
    monkeypatch.setattr(atomic, "link_once", finished_just_before)
    assert late.claim() is None and late.done()


def test_dead_process_on_this_machine_is_known_at_once(tmp_path: Path) -> None:
    """No waiting for the lease: its units are claimed again immediately after SIGKILL."""
    code = f"""
import os, signal
from sophia_mcore.store.units import UnitQueue, Unit
q = UnitQueue({str(tmp_path)!r}, [Unit("a", ("1",)), Unit("b", ("2",))], lease_seconds=1e6)
assert q.claim() and q.claim()
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    here = queue(tmp_path, [Unit("a", ("1",)), Unit("b", ("2",))], lease_seconds=1e6)
    claims = [here.claim(), here.claim()]
    assert sorted(claim.unit.id for claim in claims if claim) == ["a", "b"]


def test_a_reused_process_id_is_not_mistaken_for_the_owner() -> None:
    me = Owner.this_process()
    assert not me.is_known_dead()
    other = Owner.parse(json.dumps(json.loads(me.to_json()) | {"process_start": me.process_start - 1}))
    assert other is not None and other.is_known_dead()
    elsewhere = Owner.parse(json.dumps(json.loads(me.to_json()) | {"machine": "x", "pid": 2**22 + 1}))
    assert elsewhere is not None and not elsewhere.is_known_dead()


def test_work_that_raises_gives_the_unit_back(tmp_path: Path) -> None:
    def failing(unit: Unit, report: Callable[[int], None]) -> list[Question]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_units(queue(tmp_path, UNITS[:1], lease_seconds=1e6), Question, failing)
    other = queue(tmp_path, UNITS[:1], lease_seconds=1e6)
    claim = other.claim()
    assert claim is not None and claim.attempt == 1


def test_heartbeats_go_on_while_the_work_lasts(tmp_path: Path) -> None:
    """A unit that takes longer than the lease is not taken over: the other worker waits for it instead."""
    slow = queue(tmp_path, UNITS[:1], lease_seconds=0.4)
    taken: list[object] = []

    def long_work(unit: Unit, report: Callable[[int], None]) -> list[Question]:
        pretend_other_machine(slow)
        other = queue(tmp_path, UNITS[:1], lease_seconds=0.4)
        for _ in range(12):
            time.sleep(0.1)
            taken.append(other.claim())
        return records_of(unit)

    assert run_units(slow, Question, long_work) == 1
    assert taken == [None] * 12


def test_unfinished_temporary_claims_and_files_do_not_disturb(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / f"{UNITS[0].id}.0").write_text("")  # a claim without a name, of unknown making
    os.utime(tmp_path / "claims" / f"{UNITS[0].id}.0", (1.0, 1.0))
    (tmp_path / "claims" / ".owner-dead").write_text("{")
    (tmp_path / ".tmp-1-x.parquet").write_text("half a shard")
    assert run_units(queue(tmp_path), Question, work) == len(UNITS)
    assert all_records(tmp_path) == ITEMS


def test_shards_of_another_split_are_refused(tmp_path: Path) -> None:
    run_units(queue(tmp_path), Question, work)
    with pytest.raises(SophiaError, match="shards of other work units"):
        queue(tmp_path, units_of(ITEMS, 4))


def test_bad_units_and_folders(tmp_path: Path) -> None:
    with pytest.raises(SophiaError, match=r"'\.\./x'"):
        queue(tmp_path, [Unit("../x", ())])
    with pytest.raises(SophiaError, match="same id"):
        queue(tmp_path, [Unit("a", ()), Unit("a", ())])
    (tmp_path / "file").write_text("")
    with pytest.raises(SophiaError, match="Not a directory"):
        queue(tmp_path / "file" / "x").claim()


def _worker(folder: str, log: str, pause: float) -> None:
    def logged(unit: Unit, report: Callable[[int], None]) -> list[Question]:
        with open(log, "a") as file:  # one short append: atomic
            file.write(f"{unit.id}\n")
        time.sleep(pause)
        return records_of(unit)

    run_units(UnitQueue(folder, UNITS, lease_seconds=60.0), Question, logged)


def test_a_folder_that_cannot_be_made_ends_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(SophiaError, match="read-only"):
        run_units(queue(tmp_path / "captions"), Question, work, None)


def test_processes_that_race_do_every_unit_exactly_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = str(tmp_path / "log")
    workers = [context.Process(target=_worker, args=(str(tmp_path / "out"), log, 0.002)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    counts = Counter(Path(log).read_text().split())
    assert set(counts.values()) == {1} and len(counts) == len(UNITS)
    assert all_records(tmp_path / "out") == ITEMS


def test_random_kills_lose_nothing_and_repeat_only_what_was_unfinished(tmp_path: Path) -> None:
    """Workers are killed with SIGKILL again and again; the rest and their successors finish, each unit once."""
    context = multiprocessing.get_context("fork")
    out, log = tmp_path / "out", str(tmp_path / "log")
    killed = 0
    workers: list[multiprocessing.process.BaseProcess] = []
    while killed < 8:
        workers = [worker for worker in workers if worker.is_alive()]
        while len(workers) < 3:
            worker = context.Process(target=_worker, args=(str(out), log, 0.03))
            worker.start()
            workers.append(worker)
        time.sleep(0.05)
        if out.is_dir() and len(list(out.glob("*.parquet"))) == len(UNITS):
            break
        workers[0].kill()
        workers[0].join()
        killed += 1
    for worker in workers:
        worker.join()
    assert killed > 0
    _worker(str(out), log, 0.0)
    assert all_records(out) == ITEMS
    started = Counter(Path(log).read_text().split())
    assert sum(started.values()) <= len(UNITS) + killed  # only a killed worker's unit is started again
    assert not (out / "claims").exists()


def test_operations_per_claim_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One listing for many claims, then a constant number of operations for each."""
    units = [Unit(f"u{i}", (str(i),)) for i in range(300)]
    counts: Counter[str] = Counter()
    for name in ("listdir", "scandir", "link", "stat", "unlink", "utime", "open"):
        original = getattr(os, name)

        def counted(*args: object, _name: str = name, _original: Callable = original, **kwargs: object) -> object:
            counts[_name] += 1
            return _original(*args, **kwargs)

        monkeypatch.setattr(os, name, counted)
    many = queue(tmp_path, units)
    counts.clear()
    for _ in range(300):
        assert many.claim() is not None
    assert counts["listdir"] + counts["scandir"] <= 3
    assert counts["link"] == 300
    assert sum(counts.values()) <= 300 * 4 + 20


def test_full_disk_in_the_middle_of_a_phase(tmp_path: Path) -> None:
    """One line naming the shard, nothing half-written; with room again the same command does the rest."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs: run the tests as root, in a container for example")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        why = mounted.stderr.decode().strip()
        pytest.skip(f"cannot mount a tmpfs here (a container needs CAP_SYS_ADMIN): {why}")
    code = f"""
import os, sys
from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Question
from sophia_mcore.store.units import UnitQueue, run_units, units_of
def work(unit, report):
    return [Question(id=item, question=os.urandom(15_000).hex(), answer="1") for item in unit.items]
try:
    print(run_units(UnitQueue({str(folder / "out")!r}, units_of(map(str, range(60)), 3)), Question, work))
except SophiaError as error:
    print(error)
"""
    try:
        full = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert full.stdout.count("\n") == 1 and "parquet: No space left on device" in full.stdout
        before = len(list((folder / "out").glob("*.parquet")))
        assert 0 < before < 20 and not list((folder / "out").rglob(".tmp-*"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
        rest = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert rest.stdout == f"{20 - before}\n"
        assert sorted(all_records(folder / "out"), key=int) == [str(i) for i in range(60)]
    finally:
        subprocess.run(["umount", str(folder)], check=True)

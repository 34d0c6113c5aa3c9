"""Workers that hang, die or run out of memory never lose, change or reorder another's verdict."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from sophia_mcore.errors import SophiaError
from sophia_mcore.verify import pool as pool_module
from sophia_mcore.verify.grade import Grader
from sophia_mcore.verify.pool import Pool
from sophia_mcore.verify.types import GradeItem

ROOT = Path(__file__).resolve().parents[2]
COMPARE = "tests.unit.score_pool_compare:compare"


def pool_of(workers=1, timeout_seconds=0.4, memory_limit_mib=1024):
    return Pool(workers, timeout_seconds, memory_limit_mib, COMPARE)


def collect_all(pool, seconds=120.0):
    found = {}
    end = time.monotonic() + seconds
    while pool.pending:
        assert time.monotonic() < end, "the pool does not finish"
        found.update(pool.collect(0.2))
    return found


def descendants():
    return psutil.Process().children(recursive=True)


@pytest.fixture(autouse=True)
def no_orphans():
    before = {child.pid for child in descendants()}
    yield
    left = []
    for _ in range(100):
        left = [c for c in descendants() if c.pid not in before and c.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError(f"processes left behind: {left}")


@pytest.mark.parametrize("workers", [1, 3])
def test_outcomes_come_back_under_their_keys(workers):
    with pool_of(workers, timeout_seconds=5.0) as pool:
        for n in range(100):
            pool.submit(n, {"equal": n % 3 == 0})
        found = collect_all(pool)
    assert [found[n].kind for n in range(100)] == ["equal" if n % 3 == 0 else "different" for n in range(100)]


@pytest.mark.parametrize(
    ("action", "kind"),
    [("spin", "timeout"), ("spin in C", "timeout"), ("sleep", "timeout"), ("die", "error"), ("eat memory", "error"),
     ("fail", "error"), ("recurse", "error")],
)  # fmt: skip
def test_a_bad_task_has_its_own_outcome_and_spoils_no_other(action, kind):
    timeout = 5.0 if action == "eat memory" else 0.4
    with pool_of(timeout_seconds=timeout, memory_limit_mib=400) as pool:
        for n in range(4):
            pool.submit(n, {"equal": True})
        pool.submit("bad", {"do": action})
        for n in range(4, 12):
            pool.submit(n, {"equal": n % 2 == 0})
        found = collect_all(pool)
    assert found["bad"].kind == kind
    assert [found[n].kind for n in range(12)] == ["equal"] * 4 + ["equal", "different"] * 4


def test_a_slow_task_in_time_is_not_killed():
    with pool_of(timeout_seconds=2.0) as pool:
        pool.submit("slow", {"equal": True, "seconds": 1.0})
        assert collect_all(pool)["slow"].kind == "equal"


def test_a_worker_that_is_killed_once_is_replaced_and_its_task_repeated():
    with pool_of(timeout_seconds=30.0) as pool:
        pool.submit("a", {"equal": True, "seconds": 0.5})
        while not any(worker.pid for worker in pool._workers):
            pool.collect(0.05)
        os.kill(pool._workers[0].pid, signal.SIGKILL)
        assert collect_all(pool)["a"].kind == "equal"


def test_a_task_whose_workers_are_all_killed_is_an_error():
    with pool_of(timeout_seconds=60.0) as pool:
        pool.submit("doomed", {"do": "sleep"})
        killed = set()
        while pool.pending:
            if pool.collect(0.05):
                break
            for worker in pool._workers:
                if worker.pid and worker.pid not in killed:
                    killed.add(worker.pid)
                    os.kill(worker.pid, signal.SIGKILL)
        assert not pool.pending
    assert len(killed) == pool_module.MAX_DEATHS


def test_a_stopped_worker_is_ended_by_the_wall_clock():
    with pool_of(timeout_seconds=0.2) as pool:
        pool.submit("warm", {"equal": True})
        collect_all(pool)
        os.kill(pool._workers[0].pid, signal.SIGSTOP)
        pool.submit("stopped", {"equal": True})
        pool.submit("after", {"equal": True})
        found = collect_all(pool)
    assert (found["stopped"].kind, found["after"].kind) == ("timeout", "equal")


def test_a_pool_whose_user_looks_away_still_ends_a_hanging_worker():
    with pool_of(timeout_seconds=0.2) as pool:
        pool.submit("hang", {"do": "spin"})
        while not any(worker.pid for worker in pool._workers):
            pool.collect(0.05)
        pid = pool._workers[0].pid
        for _ in range(300):  # nobody calls collect
            if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(0.1)
        assert not psutil.pid_exists(pid)
        assert collect_all(pool)["hang"].kind == "timeout"


def test_the_starter_may_be_killed_too():
    with pool_of(workers=2, timeout_seconds=5.0) as pool:
        for n in range(50):
            pool.submit(n, {"equal": True, "seconds": 0.02})
        for _ in range(3):
            pool.collect(0.2)
            pool._starter.kill()
            for worker in list(pool._workers):
                if worker.pid:
                    os.kill(worker.pid, signal.SIGKILL)
        found = collect_all(pool)
    assert {outcome.kind for outcome in found.values()} <= {"equal"}


def test_workers_end_when_their_user_is_killed():
    code = (
        f"from sophia_mcore.verify.pool import Pool\nimport time\npool = Pool(2, 0.3, 1024, {COMPARE!r})\n"
        "pool.submit(1, {'do': 'spin'}); pool.submit(2, {'equal': True, 'seconds': 0.1})\n"
        "while len([w for w in pool._workers if w.pid]) < 2: pool.collect(0.1)\n"
        "print(*[w.pid for w in pool._workers], pool._starter.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    user = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in user.stdout.readline().split()]
    user.kill()
    user.wait()
    user.stdout.close()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(psutil.pid_exists(pid) for pid in pids):
        time.sleep(0.1)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.parametrize(("executable", "compare"), [("/bin/false", COMPARE), (sys.executable, "no.such.module:f")])
def test_a_worker_that_cannot_start_is_one_line(monkeypatch, executable, compare):
    monkeypatch.setattr(sys, "executable", executable)
    with Pool(1, 1.0, 1024, compare) as pool, pytest.raises(SophiaError, match="does not start") as caught:
        pool.submit("a", {"equal": True})
        collect_all(pool)
    assert "\n" not in str(caught.value)


# ---- through the grader, with real algebra

HANG = r"\sqrt[1000003]{2^{1000003}+1}+3"  # equals 5 in all digits of a float: nothing but algebra tells

ITEMS = [
    *(GradeItem(f"{n}", f"\\boxed{{{n % 7}{'000 m' if n % 3 else ' km'}}}", f"{n % 5} km") for n in range(90)),
    GradeItem("hang", f"\\boxed{{{HANG}}}", "5"),
    GradeItem("none", "I cannot tell.\nThe picture is too dark to see anything in it", "5"),
    GradeItem("last", r"\boxed{2}", "2"),
]


def verdicts(items=ITEMS, **settings):
    with Grader(**{"workers": 2, "timeout_seconds": 1.0, **settings}) as grader:
        return [(grade.id, grade.verdict) for grade in grader.grade_many(items)]


def test_killing_processes_at_random_changes_no_verdict():
    quiet = verdicts()
    assert [name for name, _ in quiet] == [item.id for item in ITEMS]
    assert {verdict for _, verdict in quiet} == {"correct", "wrong", "timeout", "no_answer"}
    stop = threading.Event()
    mine = {child.pid for child in descendants()}
    killed = []

    def kill():
        chance = random.Random(7)
        while not stop.wait(0.5):
            targets = [c for c in descendants() if c.pid not in mine]
            if targets and len(killed) < 8:
                target = chance.choice(targets)  # a worker or the process that starts them
                killed.append(target.pid)
                target.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        disturbed = verdicts()
    finally:
        stop.set()
        killer.join()
    assert killed
    assert disturbed == quiet


def test_several_graders_in_threads():
    results = {}

    def work(name):
        results[name] = verdicts(ITEMS[:12], workers=1)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == verdicts(ITEMS[:12])


def test_no_process_starts_for_answers_that_need_none():
    before = len(descendants())
    with Grader() as grader:
        grades = list(grader.grade_many(GradeItem(str(n), rf"\boxed{{{n}}}", "7") for n in range(20)))
        assert len(descendants()) == before
    assert [g.verdict for g in grades] == ["wrong"] * 7 + ["correct"] + ["wrong"] * 12


def test_items_are_read_lazily():
    taken = []

    def items():
        for n in range(100_000):
            taken.append(n)
            yield GradeItem(str(n), r"\boxed{7}", "7")

    with Grader() as grader:
        stream = grader.grade_many(items())
        next(stream)
        assert len(taken) < 5000
        stream.close()


def test_no_process_starts_for_algebra_that_could_not_end():
    before = len(descendants())
    with Grader() as grader:
        (grade,) = grader.grade_many([GradeItem("a", r"\boxed{\sin(10^{10^{10}})}", "0.25")])
        assert len(descendants()) == before
    assert grade.verdict == "timeout"

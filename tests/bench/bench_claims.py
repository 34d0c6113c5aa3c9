"""Work units divided by claims among tasks that die at random, against static shards and a shared first-in list.

python -m tests.bench.bench_claims [--tasks 1000] [--units 100000] [--deaths 0.05] [--owners 24] [--folder DIR]

Two parts, one JSON line.

The makespan is simulated in virtual time: a unit is 32 questions whose seconds are lognormal with a long tail, and the
units of each of 20 sources, in a row, share a factor. A share of the tasks dies at a random moment; the unit that one
holds is taken over once its lease has run out. Bound: the work must fit into the time that the tasks live, and no
schedule is shorter than the longest unit. Lengths and deaths are assumptions, not measurements.

The operations are real: processes of the real ``UnitQueue`` share one folder, some are killed in the middle of a unit,
and the filesystem calls of the survivors are counted per unit. Then the calls of one look for work of a task that finds
nothing free while ``--holders`` other tasks hold a unit each.
"""

from __future__ import annotations

import argparse
import builtins
import heapq
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from sophia_mcore.records import Kept
from sophia_mcore.store.units import Unit, UnitQueue

LEASE_SECONDS = 120.0
CALLS = ("link", "stat", "unlink", "utime", "open", "fsync", "listdir", "scandir", "replace")


def unit_seconds(random: np.random.Generator, units: int) -> np.ndarray:
    """Seconds of each unit, 75 on average."""
    found = random.lognormal(0.0, 1.0, (units, 32)).sum(axis=1)
    found *= np.repeat(random.lognormal(0.0, 0.4, 20), -(-units // 20))[:units]
    return found * 75.0 / found.mean()


def claimed(lengths: np.ndarray, deaths: np.ndarray) -> tuple[float, int]:
    """Makespan when tasks (dying at ``deaths`` seconds) claim units, and how many units were done twice over."""
    free = [(0.0, task) for task in range(len(deaths))]
    heapq.heapify(free)
    late: list[tuple[float, int]] = []  # (when its lease has run out, unit)
    following, end, begun_again, left = 0, 0.0, 0, len(lengths)
    while left:
        now, task = heapq.heappop(free)
        if now >= deaths[task]:
            continue
        if following < len(lengths):
            unit, following = following, following + 1
        elif late:
            expires, unit = heapq.heappop(late)
            now, begun_again = max(now, expires), begun_again + 1
        else:  # nothing to take: another task may still die with a unit
            continue
        done = now + lengths[unit]
        if done > deaths[task]:
            heapq.heappush(late, (deaths[task] + LEASE_SECONDS, unit))
            if not free:
                heapq.heappush(free, (deaths[task] + LEASE_SECONDS, task))
            continue
        left, end = left - 1, max(end, done)
        heapq.heappush(free, (done, task))
    return end, begun_again


def static(lengths: np.ndarray, tasks: int) -> float:
    """Makespan of equal contiguous shards, with no death at all."""
    return max(float(part.sum()) for part in np.array_split(lengths, tasks))


def bound(lengths: np.ndarray, deaths: np.ndarray) -> float:
    """No schedule ends earlier: the work must fit into the time that the tasks live."""
    low, high = 0.0, float(lengths.sum())
    for _ in range(100):
        middle = (low + high) / 2
        if np.minimum(deaths, middle).sum() < lengths.sum():
            low = middle
        else:
            high = middle
    return max(high, float(lengths.max()))


def count_calls(counts: Counter[str]) -> None:
    """Count this process's filesystem calls by wrapping those of ``os``."""
    for name in CALLS:
        plain = getattr(os, name)

        def counting(*arguments: Any, _plain: Any = plain, _name: str = name, **options: Any) -> Any:
            counts[_name] += 1
            return _plain(*arguments, **options)

        setattr(os, name, counting)


def owner(folder: str, units: list[Unit], die_after: int | None, results: Any) -> None:
    """Claim units until none is left; ``die_after`` units, end at once while holding one."""
    counts: Counter[str] = Counter()
    count_calls(counts)
    queue, done = UnitQueue(folder, units, lease_seconds=LEASE_SECONDS), 0
    while True:
        claim = queue.claim()
        if claim is None:
            if queue.done():
                break
            time.sleep(0.01)
            continue
        if done == die_after:
            os._exit(1)
        claim.finish([], Kept)
        done += 1
    results.put((done, dict(counts)))


def operations(folder: Path, units: int, owners: int, deaths: int) -> dict[str, Any]:
    """Filesystem calls per unit of ``owners`` processes on one folder, ``deaths`` of them killed holding a unit."""
    everything = [Unit(f"{i:06d}", (str(i),)) for i in range(units)]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    fates = [3 if i < deaths else None for i in range(owners)]
    processes = [context.Process(target=owner, args=(str(folder), everything, fate, results)) for fate in fates]
    since = time.perf_counter()
    for process in processes:
        process.start()
    found = [results.get() for _ in range(owners - deaths)]
    for process in processes:
        process.join()
    calls: Counter[str] = Counter()
    for _, counts in found:
        calls.update(counts)
    done = sum(number for number, _ in found)
    shards = len(list(folder.glob("*.parquet")))
    return {
        "units": units,
        "owners": owners,
        "killed": deaths,
        "shards": shards,
        "done_twice": done + 3 * deaths - shards,
        "per_unit": round(sum(calls.values()) / done, 1),
        "calls": {name: round(count / done, 2) for name, count in sorted(calls.items())},
        "units_per_second": round(units / (time.perf_counter() - since)),
    }


def idle_look(folder: Path, units: int, holders: int) -> dict[str, Any]:
    """Filesystem calls of a first and a later look for work when ``holders`` others hold all that is left."""
    everything = [Unit(f"{i:06d}", (str(i),)) for i in range(units)]
    queues = [UnitQueue(folder, everything[:holders], lease_seconds=LEASE_SECONDS) for _ in range(holders)]
    held = [queue.claim() for queue in queues]
    for unit in everything[holders:]:
        (folder / f"{unit.id}.parquet").touch()
    idle = UnitQueue(folder, everything, lease_seconds=LEASE_SECONDS)
    counts: Counter[str] = Counter()
    count_calls(counts)
    plain = builtins.open

    def counting(*arguments: Any, **options: Any) -> Any:
        counts["open"] += 1
        return plain(*arguments, **options)

    looks: list[dict[str, int]] = []
    builtins.open = counting  # type: ignore[assignment]
    try:
        for _ in range(2):
            counts.clear()
            assert idle.claim() is None and idle.remaining() == len(held)
            looks.append(dict(sorted(counts.items())))
    finally:
        builtins.open = plain
    return {"units": units, "holders": holders, "first_look": looks[0], "later_look": looks[1]}


def main() -> None:
    """Run both parts, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tasks", 1000), ("units", 100_000), ("owners", 24), ("real-units", 2000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--holders", type=int, default=256, help="tasks that hold a unit while another finds none")
    parser.add_argument("--deaths", type=float, default=0.05, help="share of the tasks that die")
    parser.add_argument("--folder", type=Path, help="on the filesystem to measure (default: the temporary one)")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    lengths = unit_seconds(random, options.units)
    expected = lengths.sum() / options.tasks
    dying = random.random(options.tasks) < options.deaths
    deaths = np.where(dying, random.uniform(0.0, expected, options.tasks), np.inf)
    makespan, twice = claimed(lengths, deaths)
    ours, peer = makespan / bound(lengths, deaths), static(lengths, options.tasks) / bound(lengths, deaths)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        real = operations(folder / "busy", options.real_units, options.owners, options.owners // 4)
        idle = idle_look(folder / "idle", options.real_units, options.holders)
    finally:
        shutil.rmtree(folder)
    line = {"name": "claims", "ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(peer / ours, 2)}
    line |= {"unit": "makespan/bound", "peer_name": "static shards, without any death", "tasks": options.tasks}
    line |= {
        "simulated_units": options.units,
        "dead_tasks": int(dying.sum()),
        "begun_again": twice,
        "real": real,
        "idle": idle,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()

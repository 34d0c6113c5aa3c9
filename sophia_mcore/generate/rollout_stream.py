"""Units that join while others are still being sampled: no place of the engine waits for the longest answer.

Verdicts are made by a thread while the engine goes on. When a newer version of the policy appears, no further unit is
begun: the running ones end with the version that they began with.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.board import Task
from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.generate.rollout_unit import Waves, begun, gone_on
from sophia_mcore.records import Rollout

if TYPE_CHECKING:
    from sophia_mcore.generate.rollout_loop import Rollouts

Key = tuple[str, int]  # name of a running unit, place of a request in it


def stream_units(loop: Rollouts, first: Task) -> None:
    """Sample ``first`` and whatever else is free, until a newer version appears or nothing is left."""
    with ThreadPoolExecutor(1, thread_name_prefix="verdicts") as pool:
        stream = _Stream(loop, pool)
        stream.begin(first)
        try:
            stream.run()
        except BaseException:
            stream.give_back()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass
class _Running:
    """A unit on its way: one wave of requests after another."""

    task: Task
    began: float
    waves: Waves
    requests: Sequence[Request]
    found: dict[int, Completion] = field(default_factory=dict)
    grading: Future[tuple[list[Request], list[Rollout]]] | None = None


class _Stream:
    def __init__(self, loop: Rollouts, pool: ThreadPoolExecutor) -> None:
        assert loop.loaded is not None
        self._loop = loop
        self._version = loop.loaded
        self._pool = pool
        self._units: dict[str, _Running] = {}
        self._waiting: list[_Running] = []
        self._latest: _Running | None = None  # whose requests joined last
        self._newer_since: float | None = None

    def run(self) -> None:
        """Stream until all units are written. A failure is that of the units that joined last."""
        while self._units:
            try:
                with self._loop.watchdog.sampling():
                    for (name, place), completion in self._loop.engine.stream(self._more, self._loop.watchdog.moved):
                        self._take(self._units[name], place, completion)
            except SophiaError:
                self._fail()
            wait([unit.grading for unit in self._units.values() if unit.grading is not None])
            self._collect()

    def begin(self, task: Task) -> None:
        """Put the requests of a unit into the queue."""
        loop, requests = self._loop, list[Request]()
        waves = loop.examiner.waves(task.claim.unit, task.batch.batch, self._version, loop.renderer)
        with loop.failing([task]):
            requests, rollouts = self._begun(waves)
            if not requests:  # nobody had to be asked
                loop.finish(task, rollouts, self._version, seconds=0.0, seconds_drain=0.0)
        if requests:
            loop.watchdog.hold(task.claim)
            unit = self._units[_name(task)] = _Running(task, time.monotonic(), waves, requests)
            self._waiting.append(unit)

    def _begun(self, waves: Waves) -> tuple[list[Request], list[Rollout]]:
        """The first wave. Functions of environments are called in the one thread that calls them for other units."""
        if self._loop.rl.one_turn:
            return begun(waves)
        future = self._pool.submit(begun, waves)
        while not wait([future], timeout=1.0).done:
            self._loop.watchdog.moved()  # it is not the engine that takes so long
        return future.result()

    def give_back(self) -> None:
        """Release what is not finished."""
        for unit in self._units.values():
            self._loop.watchdog.drop(unit.task.claim)
            unit.task.claim.release()
        self._units.clear()

    def _more(self, places: int) -> list[tuple[Key, Request]]:
        """The requests of one unit, so that one that cannot be asked is known."""
        self._collect()
        while not self._waiting and not self._is_old():
            task = self._loop.board.claim(self._version.version)
            if task is None:
                break
            self.begin(task)
        if not self._waiting:
            return []
        unit = self._latest = self._waiting.pop(0)
        return [((_name(unit.task), place), request) for place, request in enumerate(unit.requests)]

    def _is_old(self) -> bool:
        newest = self._loop.newest()
        if newest is None or newest.version == self._version.version:
            return False
        if self._newer_since is None:
            self._newer_since = time.monotonic()
        return True

    def _take(self, unit: _Running, place: int, completion: Completion) -> None:
        unit.found[place] = completion
        if len(unit.found) == len(unit.requests):
            completions = [unit.found[place] for place in range(len(unit.requests))]
            unit.grading = self._pool.submit(gone_on, unit.waves, completions)

    def _collect(self) -> None:
        """Write the units that have ended, or let their next wave join."""
        for name, unit in list(self._units.items()):
            if unit.grading is None or not unit.grading.done():
                continue
            rollouts: list[Rollout] = []
            with self._loop.failing([unit.task]):
                further, rollouts = unit.grading.result()
                unit.grading = None
                if further:
                    unit.requests, unit.found = further, {}
                    self._waiting.append(unit)
                    continue
            del self._units[name]
            self._loop.watchdog.drop(unit.task.claim)
            if unit.grading is None:  # else its verdicts failed
                drain = 0.0 if self._newer_since is None else time.monotonic() - self._newer_since
                seconds = time.monotonic() - unit.began
                self._loop.finish(unit.task, rollouts, self._version, seconds=seconds, seconds_drain=drain)

    def _fail(self) -> None:
        """The stream was ended by what joined last; the others are given back, their texts are lost."""
        guilty = self._latest
        if guilty is not None and self._units.pop(_name(guilty.task), None) is not None:
            self._loop.watchdog.drop(guilty.task.claim)
        self.give_back()
        self._waiting.clear()
        with self._loop.failing([guilty.task] if guilty is not None else []):
            raise


def _name(task: Task) -> str:
    return f"{task.batch.folder.name}/{task.claim.unit.id}"

"""Simulates how engines and trainer of the on-policy stage wait for each other, batch after batch.

A batch is units of answers. An engine takes the newest version before it takes a unit. Without a lag a unit is sampled
alone; with one, units join while others run, until a newer version appears: then the running ones end first. The
trainer takes batches in order and whole. Where nodes copy versions, the newest is the newest that is there. Times are
in seconds.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_WARM_UP = 2  # batches that do not count: everything waits for the first

Unit = tuple[float, ...]  # tokens of each of its answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Parties:
    """Both sides. ``step``: seconds of one decoding step of so many sequences; ``read``: of one prompt;
    ``load``: of a new version into an engine; ``train``: of a batch, all updates; ``publish``: of a version; ``copy``:
    of a published version to the nodes, while engines go on with the one before and the trainer with the next batch.
    """

    engines: int
    places: int  # sequences that an engine runs at once
    step: Callable[[int], float]
    read: float = 0.0
    load: float = 0.0
    train: float = 0.0
    publish: float = 0.0
    copy: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """What a batch takes when the stage runs evenly.

    ``engine_idle``: share of time in which an engine has neither answers nor weights to load; ``filled``: of its places
    that are taken, over all time; ``trainer_idle``: share of time in which the trainer waits for answers.
    """

    seconds: float
    trainer_idle: float
    engine_idle: float
    filled: float


@dataclass(slots=True)
class _Engine:
    version: int = -1
    loading: bool = False
    ready: float = 0.0  # when the present load or reading of prompts is done
    steps: float = 0.0  # decoding steps since the start
    now: float = 0.0  # up to when the fields are right
    ends: list[tuple[float, int]] = field(default_factory=list)  # (decoding step, batch) of each running answer
    waiting: list[tuple[float, int]] = field(default_factory=list)  # (tokens, batch) of a claimed unit
    busy: float = 0.0
    taken: float = 0.0  # places x seconds

    @property
    def empty(self) -> bool:
        return not self.ends and not self.waiting and not self.loading

    def next(self, step: Callable[[int], float]) -> float:
        """When something ends here."""
        if self.loading:
            return self.ready
        if not self.ends:
            return math.inf
        return max(self.now, self.ready) + max(0.0, self.ends[0][0] - self.steps) * step(len(self.ends))

    def advance(self, time: float, step: Callable[[int], float]) -> None:
        passed = time - self.now
        if self.loading or self.ends:
            self.busy += passed
            self.taken += passed * len(self.ends)
        if self.ends and not self.loading:
            self.steps += max(0.0, time - max(self.now, self.ready)) / step(len(self.ends))
        self.now = time


def batches_of(lengths: Sequence[float], per_unit: int, batches: int) -> list[list[Unit]]:
    """``batches`` times all ``lengths``, each in another order, cut into units of ``per_unit`` answers."""
    made = []
    for number in range(batches):
        order = list(lengths)
        random.Random(number).shuffle(order)  # noqa: S311  an order, no secret
        made.append([tuple(order[start : start + per_unit]) for start in range(0, len(order), per_unit)])
    return made


def simulate(batches: Sequence[Sequence[Unit]], parties: Parties, lag: int) -> Turns:
    """Play the stage; the first batches do not count.

    Raises ValueError: fewer than four batches, which say nothing about an even run.
    """
    if len(batches) < _WARM_UP + 2:
        raise ValueError(f"{len(batches)} batches: at least {_WARM_UP + 2} are played")
    return _Stage(batches, parties, lag).play()


class _Stage:
    def __init__(self, batches: Sequence[Sequence[Unit]], parties: Parties, lag: int) -> None:
        self._batches, self._parties, self._lag = batches, parties, lag
        self._engines = [_Engine() for _ in range(parties.engines)]
        self._free = [list(units) for units in batches]
        self._left = [sum(map(len, units)) for units in batches]  # answers of a batch that are not there
        self._version = self._here = 0  # published; on the nodes
        self._copied = math.inf  # when the copy that is on its way is there
        self._trained = math.inf  # when the batch in training is trained and published
        self._idle_since: float | None = 0.0
        self._waits: list[float] = []
        self._ends: list[float] = []
        self._marks: list[tuple[float, float]] = []  # (busy, taken) of all engines when each batch was done

    def play(self) -> Turns:
        time = 0.0
        while self._version < len(self._batches):
            self._begin_training(time)
            if time >= self._copied:
                self._here, self._copied = self._version, math.inf
            for engine in self._engines:
                self._fill(engine, time)
            time = min(self._trained, self._copied, *(engine.next(self._parties.step) for engine in self._engines))
            for engine in self._engines:
                engine.advance(time, self._parties.step)
                self._end(engine, time)
            if time >= self._trained:
                self._publish(time)
        first, last = _WARM_UP - 1, len(self._batches) - 1 - min(self._lag, len(self._batches) - _WARM_UP - 1)
        counted, span = last - first, self._ends[last] - self._ends[first]
        busy, taken = (self._marks[last][i] - self._marks[first][i] for i in range(2))
        whole = span * self._parties.engines
        return Turns(
            seconds=span / counted,
            trainer_idle=sum(self._waits[first + 1 : last + 1]) / span,
            engine_idle=1.0 - busy / whole,
            filled=taken / whole / self._parties.places,
        )

    def _begin_training(self, time: float) -> None:
        if self._idle_since is not None and self._left[self._version] == 0:
            self._waits.append(time - self._idle_since)
            self._idle_since = None
            self._trained = time + self._parties.train + self._parties.publish

    def _publish(self, time: float) -> None:
        self._version += 1
        self._copied = time + self._parties.copy
        self._trained, self._idle_since = math.inf, time
        self._ends.append(time)
        self._marks.append((sum(one.busy for one in self._engines), sum(one.taken for one in self._engines)))

    def _fill(self, engine: _Engine, time: float) -> None:
        """Claim units and begin answers, as far as the engine may."""
        if engine.loading:
            return
        if engine.version != self._here and engine.empty and self._open(self._here) is not None:
            engine.version, engine.loading = self._here, True
            engine.ready = time + self._parties.load
            return
        while len(engine.ends) < self._parties.places:
            if not engine.waiting and not self._claim(engine):
                return
            tokens, batch = engine.waiting.pop()
            heapq.heappush(engine.ends, (engine.steps + tokens, batch))
            engine.ready = max(engine.ready, time) + self._parties.read

    def _claim(self, engine: _Engine) -> bool:
        if engine.version != self._here or (self._lag == 0 and engine.ends):
            return False
        number = self._open(engine.version)
        if number is None:
            return False
        engine.waiting = [(tokens, number) for tokens in self._free[number].pop()]
        return True

    def _open(self, version: int) -> int | None:
        """The lowest open batch with a free unit that the version may answer."""
        last = min(version + self._lag, len(self._batches) - 1)
        return next((number for number in range(version, last + 1) if self._free[number]), None)

    def _end(self, engine: _Engine, time: float) -> None:
        if engine.loading and time >= engine.ready:
            engine.loading = False
        while engine.ends and engine.ends[0][0] <= engine.steps + 1e-9:
            _, batch = heapq.heappop(engine.ends)
            self._left[batch] -= 1

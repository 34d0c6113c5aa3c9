"""Keeps an engine full across work units: requests of the next unit join while the longest of one are running.

It is the way of the on-policy stage (``generate.rollout_stream``): both feed ``engine.Streaming.stream``. An engine
without it, or with ``across_units`` off, gets the requests of one unit after the other, and they are one call of
``generate`` unless requests are given up on the way. What is done with the texts is the same.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Completion, Engine, Request, RequestError, Streaming
from sophia_mcore.generate.unit_work import UnitWork
from sophia_mcore.pretrained.family import IMAGE_PLACE
from sophia_mcore.progress import Progress
from sophia_mcore.store.units import Held, Unit

_LOOK_SECONDS = 1.0  # when no unit is free, the next look for one comes so much later
_SHOWN = 80  # characters of a request that has failed
_MOST_UNGRADED = 4  # units that may wait for verdicts, beside one for each that is sampled

Key = tuple[str, int]  # name of a unit that is held, place of a request in it
Begin = Callable[[Unit], UnitWork]


class Tally:
    """What a process has sampled in a phase, shown as it goes."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seconds = 0.0
        self._since = time.monotonic()
        self.tokens = 0

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """The time of the body is that of an engine at work."""
        self._since = time.monotonic()
        yield
        self._seconds += time.monotonic() - self._since

    def show(self) -> None:
        """One line beside the progress bar, in the body of ``sampling`` or behind it."""
        seconds = max(self._seconds + time.monotonic() - self._since, 1e-9)
        self._progress.note(f"{self.tokens:,} tokens, {self.tokens / seconds:,.0f}/s")


def fill(first: Unit, held: Held, engine: Engine, begin: Begin, tally: Tally, *, cutting: bool = False) -> None:
    """Sample ``first`` and, where the engine takes units together, whatever further units are free.

    ``cutting``: the units give requests up, so that an engine which can do that should. Each unit ends in ``held``, as
    done or as failed. Raises what ``held.fail`` raises.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="verdicts") as pool:
        try:
            _Filling(held, engine, begin, tally, pool, cutting).run(first)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Filling:
    def __init__(
        self, held: Held, engine: Engine, begin: Begin, tally: Tally, pool: ThreadPoolExecutor, cutting: bool
    ) -> None:
        self._held, self._begin_work, self._tally, self._pool = held, begin, tally, pool
        self._engine = engine
        self._together = isinstance(engine, Streaming) and engine.across_units
        self._streams = self._together or (cutting and isinstance(engine, Streaming) and engine.cuts)
        self._works: dict[str, UnitWork] = {}  # in the order in which they began
        self._jobs: dict[str, Future[Any]] = {}
        self._running: dict[Key, Request] = {}
        self._again: deque[tuple[Key, Request]] = deque()  # were running when another one's failure ended the stream
        self._latest = ""  # unit whose requests joined last
        self._begun = 0
        self._claim_after = 0.0
        self._ends = False

    def run(self, first: Unit) -> None:
        """Sample until all that is held is written."""
        self._begin(first)
        try:
            while self._works:
                self._sample()
                self._settle()
        except Exception:
            with suppress(Exception):  # units that are sampled are written; the first error is the one to tell
                self._settle()
            raise

    def _sample(self) -> None:
        with self._tally.sampling():
            try:
                for key, outcome in self._stream():
                    if isinstance(outcome, RequestError):
                        self._refused(key, outcome)
                    else:
                        self._take(key, outcome)
            except Exception as error:
                if self._ends:
                    raise
                self._fail(error)

    def _settle(self) -> None:
        """Wait for all verdicts; write the units that are done."""
        wait(self._jobs.values())
        self._collect()

    def _stream(self) -> Iterator[tuple[Key, Completion | RequestError]]:
        if not self._streams:
            return self._in_turn()
        assert isinstance(self._engine, Streaming)
        return self._engine.stream(self._more, self._some_job_is_done, self._cut)

    def _begin(self, unit: Unit) -> None:
        self._begun += 1
        name = f"{unit.id}.{self._begun}"  # one that has failed may be begun again
        try:
            self._works[name] = self._begin_work(unit)
        except Exception as error:
            with self._ending():
                self._held.fail(unit, error)
        else:
            self._collect_one(name)  # it may have no requests

    def _more(self, places: int) -> list[tuple[Key, Request]]:
        """Requests of one unit, so that one that cannot be asked is known; the units that began first come first."""
        self._collect()
        found = [self._again.popleft() for _ in range(min(1, len(self._again)))]
        if not found:
            found = self._of_the_first(places)
        while not found and self._may_claim():
            with self._ending():
                unit = self._held.claim()
            if unit is None:
                self._claim_after = time.monotonic() + _LOOK_SECONDS
                break
            self._begin(unit)
            found = self._of_the_first(places)
        self._running.update(found)
        if found:
            self._latest = found[0][0][0]
        return found

    def _may_claim(self) -> bool:
        """Whether a further unit may begin, when none that is held has anything to ask.

        A kill loses the units that wait for verdicts, so an engine that is faster than these waits too.
        """
        if time.monotonic() < self._claim_after:
            return False
        sampled = len(self._works.keys() & {name for name, _ in self._running})
        ungraded = len(self._works) - sampled
        return not self._works or (self._together and ungraded < _MOST_UNGRADED + sampled)

    def _of_the_first(self, places: int) -> list[tuple[Key, Request]]:
        for name, work in self._works.items():
            if ready := work.ready(places):
                return [((name, place), request) for place, request in ready]
        return []

    def _in_turn(self) -> Iterator[tuple[Key, Completion]]:
        """Like a stream, but all that can be asked of a unit is sampled before anything else is."""
        while asked := self._more(sys.maxsize):
            over, ended = sum(work.over for work in self._works.values()), 0

            def on_done(count: int, over: int = over) -> None:
                nonlocal ended
                ended += count
                self._report(over + ended)

            completions = self._engine.generate([request for _, request in asked], on_done)
            yield from zip((key for key, _ in asked), completions, strict=True)

    def _take(self, key: Key, completion: Completion) -> None:
        name, place = key
        self._running.pop(key)
        self._tally.tokens += len(completion.token_ids)
        if name not in self._works:  # its verdicts have failed since
            return
        self._works[name].take(place, completion)
        self._start_job(name)
        if self._streams:
            self._report(sum(work.over for work in self._works.values()))

    def _report(self, over: int) -> None:
        """Items of the units that are held, as the share of their requests that need nothing more."""
        size = sum(work.size for work in self._works.values())
        items = sum(len(work.unit.items) for work in self._works.values())
        self._held.report(over * items // max(size, 1))

    def _cut(self, tokens: Callable[[Key], int]) -> list[Key]:
        found: list[Key] = []
        for name, work in self._works.items():

            def tokens_of(place: int, name: str = name) -> int:
                return tokens((name, place)) if (name, place) in self._running else 0

            found += [(name, place) for place in work.cut(tokens_of)]
        for key in found:
            self._tally.tokens += tokens(key)
            del self._running[key]
        return found

    def _start_job(self, name: str) -> None:
        if name not in self._jobs and (job := self._works[name].job()) is not None:
            self._jobs[name] = self._pool.submit(job)

    def _some_job_is_done(self) -> bool:
        return any(job.done() for job in self._jobs.values())

    def _collect(self) -> None:
        for name in list(self._works):
            self._collect_one(name)

    def _collect_one(self, name: str) -> None:
        """Take over what a job has found out; write the unit when nothing of it is left to do."""
        work = self._works[name]
        if (job := self._jobs.get(name)) is not None:
            if not job.done():
                return
            del self._jobs[name]
            try:
                work.settle(job.result())
            except Exception as error:
                self._drop(name, error)
                return
        self._start_job(name)
        if name not in self._jobs and (outcome := work.outcome()) is not None:
            del self._works[name]
            with self._ending():
                self._held.finish(work.unit, *outcome)
            self._tally.show()

    def _refused(self, key: Key, error: RequestError) -> None:
        """One request has failed, and its unit with it. What else is running goes on."""
        request = self._running.pop(key)
        if key[0] in self._works:  # else another request of its unit has failed before
            asked = " ".join(request.messages[-1].text.replace(IMAGE_PLACE, " ").split())
            said = f"{asked[:_SHOWN]}{'...' if len(asked) > _SHOWN else ''}"
            self._drop(key[0], SophiaError(f"{error} (asked was: {said!r})"))

    def _fail(self, error: Exception) -> None:
        """The stream has ended: by the requests that joined last. What else was running is asked again."""
        name = self._latest
        if name not in self._works:
            raise error
        self._drop(name, error)
        self._again.extend((key, request) for key, request in self._running.items() if key[0] in self._works)
        self._running.clear()

    def _drop(self, name: str, error: Exception) -> None:
        work = self._works.pop(name)
        self._again = deque(one for one in self._again if one[0][0] != name)
        if (job := self._jobs.pop(name, None)) is not None:
            job.cancel()
        with self._ending():
            self._held.fail(work.unit, error)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """What is raised in the body is no fault of a request, though it may come out of the engine's stream."""
        try:
            yield
        except Exception:
            self._ends = True
            raise

"""Processes that run functions of a user's own, and are killed and replaced when a call takes too long.

A call has an outcome in any case: a value, or what went wrong in one line. One stuck, dead or lying function never
loses or reorders the outcome of another call.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sophia_mcore.config.functions import Functions
from sophia_mcore.errors import SophiaError
from sophia_mcore.verify.pool import module_environment

WALL_FACTOR = 5.0  # a call that does not even compute ends after so many times its CPU-seconds
IMPORT_SECONDS = 30.0  # CPU-seconds of importing one file
IMPORT_WALL_SECONDS = 120.0
MAX_DEATHS = 2  # a call that took so many processes down has failed; one may have been killed by somebody else
_CHUNK = 1 << 20
_LOOK_SECONDS = 0.2
_TELL_SECONDS = 1.0
_MODULE = "sophia_mcore.environments.worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A function to import. ``reference``: what the user calls it."""

    key: str
    path: str
    name: str
    reference: str


class Outcome(NamedTuple):
    """What came of a call: a value, or, where ``error`` is not "", what went wrong."""

    value: Any
    error: str = ""


Watch = Callable[[str, int, int], None]  # what is done, and how many of how many calls have an outcome


@dataclass(slots=True)
class _Call:
    index: int
    key: str
    line: bytes
    deaths: int = 0


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    life: int  # it ends when this descriptor closes
    since: float
    ready: bool = False
    importing: str = ""
    call: _Call | None = None
    parts: list[bytes] = field(default_factory=list)


class FunctionPool:
    """Use as a context manager. One thread at a time.

    ``watch`` is told about once a second how far it is. With ``patient`` False the first call that takes a process down
    (it takes too long, or dies) ends the work with SophiaError, so that nobody waits for the next one.
    """

    def __init__(
        self, specs: Sequence[Spec], limits: Functions, *, watch: Watch | None = None, patient: bool = True
    ) -> None:
        self._limits, self._watch, self._patient = limits, watch, patient
        self._named = {one.key: f"{one.key}: {one.reference}" for one in specs}
        self._job = {
            "memory_mib": limits.memory_limit_mib,
            "seconds": limits.timeout_seconds,
            "import_seconds": IMPORT_SECONDS,
            "functions": [
                {"key": one.key, "path": one.path, "name": one.name, "reference": one.reference} for one in specs
            ],
        }
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> FunctionPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for worker in list(self._workers):
            self._discard(worker)
        self._selector.close()

    def run(self, calls: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """The outcome of each call ({"key", "kind", "options", ...}), in order.

        Raises SophiaError when a file cannot be imported: then no call can have a value.
        """
        waiting = deque(
            _Call(index, call["key"], json.dumps(call).encode() + b"\n") for index, call in enumerate(calls)
        )
        outcomes: dict[int, Outcome] = {}
        try:
            while len(outcomes) < len(calls):
                self._feed(waiting)
                for key, _ in self._selector.select(self._seconds_to_wait()):
                    self._read(key.data, waiting, outcomes)
                self._enforce(outcomes)
                self._tell(len(outcomes), len(calls))
        except BaseException:  # a worker in the middle of a call would answer another one
            for worker in list(self._workers):
                self._discard(worker)
            raise
        return [outcomes[index] for index in range(len(calls))]

    def _tell(self, done: int, total: int) -> None:
        if self._watch is None:
            return
        what = "a process to start"
        for one in self._workers:
            if one.call is not None:
                what = f"{self._named[one.call.key]} (at most {self._limit(one):g} seconds a call)"
            elif one.importing and not one.ready:
                what = f"the import of {one.importing} (at most {self._limit(one):g} seconds)"
        self._watch(what, done, total)

    def _lost(self, call: _Call, error: str, outcomes: dict[int, Outcome]) -> None:
        """A call that took a process down."""
        if not self._patient:
            raise SophiaError(f"{self._named[call.key]}: {error}; it was not called again")
        outcomes[call.index] = Outcome(None, error)

    def _feed(self, waiting: deque[_Call]) -> None:
        free = [worker for worker in self._workers if worker.ready and worker.call is None]
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._workers) < self._limits.workers and len(free) + starting < len(waiting):
            self._start()
            starting += 1
        for worker in free:
            if not waiting:
                return
            worker.call, worker.since = waiting.popleft(), time.monotonic()
            with contextlib.suppress(OSError):  # its death is seen when its output ends
                assert worker.process.stdin is not None
                worker.process.stdin.write(worker.call.line)
                worker.process.stdin.flush()

    def _start(self) -> None:
        inner, outer = os.pipe()
        environment = module_environment() | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(inner)],
                pass_fds=[inner],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # so that what a function starts is ended with it
            )
        except OSError as error:
            os.close(outer)
            raise SophiaError(f"no process for functions of your own could be started ({error})") from None
        finally:
            os.close(inner)
        assert process.stdin is not None and process.stdout is not None
        worker = _Worker(process, outer, time.monotonic())
        self._workers.append(worker)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        with contextlib.suppress(OSError):
            process.stdin.write(json.dumps(self._job).encode() + b"\n")
            process.stdin.flush()

    def _read(self, worker: _Worker, waiting: deque[_Call], outcomes: dict[int, Outcome]) -> None:
        assert worker.process.stdout is not None
        data = os.read(worker.process.stdout.fileno(), _CHUNK)
        if not data:
            self._died(worker, waiting, outcomes)
            return
        worker.parts.append(data)
        if b"\n" not in data:
            return
        *lines, rest = b"".join(worker.parts).split(b"\n")
        worker.parts = [rest] if rest else []
        for line in lines:
            message = json.loads(line)
            if "importing" in message:
                worker.importing, worker.since = message["importing"], time.monotonic()
            elif "failed" in message:
                raise SophiaError(f"{worker.importing}: cannot be imported: {message['failed']}")
            elif "ready" in message:
                worker.ready = True
            elif worker.call is not None:
                outcomes[worker.call.index] = Outcome(message.get("value"), message.get("error", ""))
                worker.call = None

    def _died(self, worker: _Worker, waiting: deque[_Call], outcomes: dict[int, Outcome]) -> None:
        code = worker.process.wait()
        call, ready, importing = worker.call, worker.ready, worker.importing
        self._discard(worker)
        if not ready:
            why = self._end(code, IMPORT_SECONDS, "the most for an import")
            raise SophiaError(f"{importing or _MODULE}: cannot be imported: {why}")
        if call is None:
            return
        call.deaths += 1
        if code == -signal.SIGPROF or call.deaths >= MAX_DEATHS:
            self._lost(call, self._end(code, self._limits.timeout_seconds, "functions.timeout_seconds"), outcomes)
        else:
            waiting.appendleft(call)

    def _end(self, code: int, seconds: float, limit: str) -> str:
        if code == -signal.SIGPROF:
            return f"took more than {seconds:g} CPU-seconds ({limit})"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"its process {how} (memory is limited by functions.memory_limit_mib)"

    def _limit(self, worker: _Worker) -> float:
        return WALL_FACTOR * self._limits.timeout_seconds if worker.ready else IMPORT_WALL_SECONDS

    def _seconds_to_wait(self) -> float:
        ends = [one.since + self._limit(one) for one in self._workers if one.call is not None or not one.ready]
        now = time.monotonic()
        return min(_TELL_SECONDS, max(0.0, min(ends, default=now + _TELL_SECONDS) - now))

    def _enforce(self, outcomes: dict[int, Outcome]) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            limit = self._limit(worker)
            if (worker.call is None and worker.ready) or now - worker.since < limit:
                continue
            if _computes(worker.process.pid):  # it ends by CPU time; a busy machine gives it little
                worker.since = now - limit + _LOOK_SECONDS
                continue
            call, importing = worker.call, worker.importing
            self._discard(worker)
            if call is None:
                raise SophiaError(f"{importing}: cannot be imported: it did not end within {limit:g} seconds")
            factor = f"{WALL_FACTOR:g} x functions.timeout_seconds"
            self._lost(call, f"did not end within {limit:g} seconds ({factor})", outcomes)

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        assert worker.process.stdin is not None and worker.process.stdout is not None
        self._selector.unregister(worker.process.stdout)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        for stream in (worker.process.stdin, worker.process.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        os.close(worker.life)


def _computes(pid: int) -> bool:
    """Whether the process is running or waits for a processor, and not for anything else."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "R"
    except (OSError, IndexError):
        return False

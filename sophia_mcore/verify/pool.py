"""A pool of worker processes that are killed and replaced when a comparison takes too long.

No alarm inside the process is relied on: a C loop ignores it. The deadline counts the worker's CPU time, so that a
busy machine does not turn slow answers into timeouts; ``WALL_FACTOR`` times as much wall time ends a worker that does
not even compute. One thread drives everything through ``select``, so it works from any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError

WALL_FACTOR = 5.0
PREFETCH = 4  # tasks that wait inside a worker, so that it need not wait for the parent
MAX_DEATHS = 4  # a task that took this many workers down is an error
MAX_KILLED_STARTS = 20  # somebody kills the starting process again and again
START_SECONDS = 120.0
COMPARE = "sophia_mcore.verify.comparing.equivalence:equivalent"
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Outcome:
    """Result of one task: "equal", "different", "timeout" or "error", and the CPU-seconds it took."""

    kind: str
    seconds: float
    detail: str = ""


@dataclass(slots=True)
class _Task:
    key: Any
    line: bytes
    deaths: int = 0


@dataclass(slots=True)
class _Worker:
    connection: socket.socket
    starter: subprocess.Popen[bytes] | None  # the process that forks it
    born: float
    pid: int = 0  # 0 until its first message
    buffer: bytes = b""
    tasks: deque[_Task] = field(default_factory=deque)  # in the order sent; the first is being worked on
    since: float = 0.0  # wall clock when the first task began
    cpu_mark: float = 0.0  # CPU time of the process when the first task began


def _cpu_seconds(pid: int) -> float:
    """CPU time (user + system) of a live process; inf when it cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS
    except (OSError, IndexError, ValueError):
        return float("inf")


def module_environment() -> dict[str, str]:
    """Environment in which a child of the same interpreter finds this package, wherever it was imported from."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class Pool:
    """Compares answers in ``workers`` processes. Use as a context manager; drive it with ``submit`` and ``collect``.

    ``compare`` names the function that the workers call with a task; it answers True or False.
    """

    def __init__(self, workers: int, timeout_seconds: float, memory_limit_mib: int, compare: str = COMPARE) -> None:
        self._compare = compare
        self._size = workers
        self._timeout = timeout_seconds
        self._memory = memory_limit_mib
        self._queue: deque[_Task] = deque()
        self._done: list[tuple[Any, Outcome]] = []
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._starter: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._failed_starts = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pending(self) -> int:
        """Number of tasks submitted and not yet collected."""
        return len(self._queue) + len(self._done) + sum(len(w.tasks) for w in self._workers)

    def submit(self, key: Any, task: dict[str, Any]) -> None:
        """Queue one comparison; its outcome comes back from ``collect`` under ``key``."""
        self._queue.append(_Task(key, json.dumps(task).encode() + b"\n"))
        self._feed()

    def collect(self, wait_seconds: float) -> list[tuple[Any, Outcome]]:
        """Finished tasks, waiting at most ``wait_seconds`` for the first. Raises SophiaError if no worker can start."""
        give_up = time.monotonic() + wait_seconds
        while True:
            self._feed()
            left = 0.0 if self._done else max(0.0, min(give_up, self._next_check()) - time.monotonic())
            for key, _ in self._selector.select(left):
                self._read(key.data)
            self._enforce()
            if self._done or time.monotonic() >= give_up or not self.pending:
                done, self._done = self._done, []
                self._feed()
                return done

    def close(self) -> None:
        """End all processes."""
        for worker in list(self._workers):
            self._discard(worker)
        self._stop_starter()
        self._selector.close()

    # ---- starting

    def _stop_starter(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._starter is not None:
            self._starter.kill()
            self._starter.wait()
        self._starter = self._control = None

    def _start_starter(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "sophia_mcore.verify.worker", str(theirs.fileno())]
        command += [str(self._memory), str(2.0 * self._timeout + 1.0), self._compare]
        self._starter = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env=module_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        ours.settimeout(START_SECONDS)
        self._control = ours

    def _spawn(self) -> None:
        for _ in range(MAX_KILLED_STARTS):  # again if the starter turns out to be dead
            if self._control is None:
                self._start_starter()
            ours, theirs = socket.socketpair()
            try:
                assert self._control is not None
                socket.send_fds(self._control, [b"fork"], [theirs.fileno()])
            except OSError:
                ours.close()
                if self._starter is not None:
                    self._starter.wait(START_SECONDS)
                self._start_failed()
                continue
            finally:
                theirs.close()
            worker = _Worker(ours, self._starter, born=time.monotonic())
            self._workers.append(worker)
            self._selector.register(ours, selectors.EVENT_READ, worker)
            return
        raise SophiaError("grading: no worker process could be started")

    def _start_failed(self) -> None:
        """A worker died before it could work: find out why, and give up when that happens too often in a row."""
        self._failed_starts += 1
        limit, reason = MAX_KILLED_STARTS, "its processes are killed"
        if self._starter is not None and self._control is not None and self._starter.poll() is not None:
            if self._starter.returncode >= 0:
                limit, reason = MAX_DEATHS, f"it ended with exit code {self._starter.returncode}"
                with contextlib.suppress(OSError):
                    self._control.settimeout(1.0)
                    reason = self._control.recv(600).decode(errors="replace") or reason
            self._stop_starter()
        if self._failed_starts >= limit:
            raise SophiaError(f"grading: the worker process of {sys.executable} does not start: {reason}")

    # ---- working

    def _feed(self) -> None:
        """Keep every worker supplied, starting workers only as tasks need them."""
        for worker in [w for w in self._workers if not w.tasks]:
            self._give(worker, 1)
        while self._queue and len(self._workers) < self._size:
            self._spawn()
            self._give(self._workers[-1], 1)
        for worker in list(self._workers):
            self._give(worker, PREFETCH)

    def _give(self, worker: _Worker, depth: int) -> None:
        while self._queue and len(worker.tasks) < depth:
            task = self._queue.popleft()
            if not worker.tasks:
                worker.since = time.monotonic()
            worker.tasks.append(task)
            try:
                worker.connection.sendall(task.line)
            except OSError:
                self._died(worker)
                return

    def _read(self, worker: _Worker) -> None:
        try:
            data = worker.connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._died(worker)
            return
        *lines, worker.buffer = (worker.buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            worker.since, worker.cpu_mark = time.monotonic(), message["cpu"]
            if "pid" in message:
                worker.pid = message["pid"]
                self._failed_starts = 0
                continue
            task, seconds = worker.tasks.popleft(), message["seconds"]
            if seconds > self._timeout:  # it ended by itself while nobody watched: the same verdict as when killed
                self._done.append((task.key, Outcome("timeout", seconds)))
            elif "error" in message:
                self._done.append((task.key, Outcome("error", seconds, message["error"])))
            else:
                self._done.append((task.key, Outcome("equal" if message["equal"] else "different", seconds)))

    def _next_check(self) -> float:
        """When the next worker has to be looked at, in monotonic seconds."""
        now = time.monotonic()
        return min((max(w.since + self._timeout, now + 0.02) for w in self._workers if w.tasks), default=now + 1.0)

    def _enforce(self) -> None:
        """Kill every worker whose first task is past its deadline."""
        now = time.monotonic()
        for worker in list(self._workers):
            if not worker.pid:
                if now - worker.born > START_SECONDS:
                    self._died(worker)
                continue
            elapsed = now - worker.since
            if not worker.tasks or elapsed < self._timeout:
                continue
            spent = _cpu_seconds(worker.pid) - worker.cpu_mark
            if spent >= self._timeout or elapsed >= WALL_FACTOR * self._timeout:
                task = worker.tasks.popleft()
                self._done.append((task.key, Outcome("timeout", min(spent, elapsed))))
                self._discard(worker)

    def _died(self, worker: _Worker) -> None:
        """A worker ended by itself or was killed by others: its first task is tried again elsewhere."""
        if not worker.pid:
            if worker.starter is self._starter:  # else its starter's death has been counted
                self._start_failed()
        elif worker.tasks:
            task = worker.tasks[0]
            task.deaths += 1
            elapsed = time.monotonic() - worker.since
            if elapsed > 2.0 * self._timeout:  # the kernel's backstop ended it before we looked
                self._done.append((worker.tasks.popleft().key, Outcome("timeout", elapsed)))
            elif task.deaths >= MAX_DEATHS:
                self._done.append((worker.tasks.popleft().key, Outcome("error", elapsed, "the worker process died")))
        self._discard(worker)

    def _discard(self, worker: _Worker) -> None:
        """Remove a worker, ending its process; tasks it still had go back to the front of the queue."""
        self._workers.remove(worker)
        self._selector.unregister(worker.connection)
        worker.connection.close()
        if worker.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        self._queue.extendleft(reversed(worker.tasks))
        worker.tasks.clear()

"""Progress of a phase, shown on a terminal, in a log file, or by the parent process.

A phase runs in its own process, because it has its own environment. It sends its progress as JSON lines over an
inherited pipe, and the parent process shows it on the terminal. Without a parent (a Slurm task) plain lines are printed
at intervals.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import IO, Protocol, TextIO


class Progress(Protocol):
    """The methods that a phase calls while it works."""

    def start(self, task: str, total: int, completed: int = 0) -> None:
        """Begin ``task`` with ``total`` items (0: not known yet), of which ``completed`` are already done."""

    def advance(self, count: int = 1) -> None:
        """Report that ``count`` more items of the current task are done."""

    def note(self, text: str) -> None:
        """Show a short remark beside the bar, such as the current loss."""


class NoProgress:
    """A no-op: shows nothing."""

    def start(self, task: str, total: int, completed: int = 0) -> None:
        """Ignored."""

    def advance(self, count: int = 1) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""


class PipeProgress:
    """Sends events as JSON lines to the parent process."""

    def __init__(self, file_descriptor: int) -> None:
        self._pipe: IO[str] | None = os.fdopen(file_descriptor, "w", buffering=1)

    def _send(self, **event: object) -> None:
        if self._pipe is None:
            return
        try:
            self._pipe.write(json.dumps(event) + "\n")
        except OSError:  # the parent has ended; go on without it
            self._pipe = None

    def start(self, task: str, total: int, completed: int = 0) -> None:
        """Begin a task."""
        self._send(event="start", task=task, total=total, completed=completed)

    def advance(self, count: int = 1) -> None:
        """Advance the current task."""
        self._send(event="advance", count=count)

    def note(self, text: str) -> None:
        """Show a remark."""
        self._send(event="note", text=text)


class LineProgress:
    """Prints a plain line at the start, every ``interval_seconds`` and at the end. For logs and Slurm."""

    def __init__(self, stream: TextIO | None = None, interval_seconds: float = 15.0) -> None:
        self._stream = stream or sys.stderr
        self._interval = interval_seconds
        self._task, self._total, self._done, self._note = "", 0, 0, ""
        self._last = 0.0

    def _print(self) -> None:
        self._last = time.monotonic()
        note = f"  {self._note}" if self._note else ""
        print(f"{self._task}: {self._done}/{self._total or '?'}{note}", file=self._stream, flush=True)

    def start(self, task: str, total: int, completed: int = 0) -> None:
        """Begin a task."""
        if self._task and not self._total:  # the number of items was not known before the end
            self._total = self._done
            self._print()
        self._task, self._total, self._done, self._note = task, total, completed, ""
        self._print()

    def advance(self, count: int = 1) -> None:
        """Advance the current task."""
        self._done += count
        if self._done == self._total or time.monotonic() - self._last > self._interval:
            self._print()

    def note(self, text: str) -> None:
        """Show a remark with the next line."""
        self._note = text


def counting(progress: Progress, task: str) -> Callable[[int, int], None]:
    """A callback (items done so far, all items) that shows the progress of ``task``; for ``store.units.run_units``.

    Items of the first call count as done by an earlier attempt. The bar never goes back.
    """
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        if shown < 0:
            progress.start(task, total, done)
        elif done > shown:
            progress.advance(done - shown)
        shown = max(done, shown)

    return show


def worker_progress(file_descriptor: int | None) -> Progress:
    """Progress of a worker process: sent to its parent's pipe, or without one printed as plain lines on stderr."""
    return LineProgress() if file_descriptor is None else PipeProgress(file_descriptor)


def relay(progress: Progress, events: IO[str]) -> None:
    """Show the events that a child process sends with ``PipeProgress``, until it closes its end of the pipe."""
    for line in events:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue  # an incomplete line of a child that was killed
        kind = event.pop("event", "")
        if kind == "start":
            progress.start(**event)
        elif kind == "advance":
            progress.advance(**event)
        elif kind == "note":
            progress.note(**event)

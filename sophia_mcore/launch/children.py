"""Long-lived child processes of a stage: start them, watch them, restart them when they die, end them together."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from sophia_mcore.death_signal import dies_with
from sophia_mcore.errors import SophiaError
from sophia_mcore.launch.process import error_line

_STEADY_SECONDS = 600.0  # after a process has run this long, its restarts are counted from 0 again
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass(kw_only=True)
class Child:
    """One child process, started without a shell. Its output goes to ``log_file``.

    ``follow``: reads the progress events that the child sends over the pipe of ``--progress-fd``. ``patience_seconds``:
    time that the child has to stop after TERM. ``alive_file``: process id -> file that the child touches while it
    works. A child that has not touched it for ``silent_seconds`` hangs and is killed.
    """

    name: str
    arguments: Sequence[str]
    log_file: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    max_restarts: int = 0
    patience_seconds: float = 20.0
    follow: Callable[[IO[str]], None] | None = None
    alive_file: Callable[[int], Path] | None = None
    silent_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._next = 0.0
        self._log_start = 0
        self._hung = False

    def start(self) -> None:
        """Start the process, or start it again. Raises SophiaError when the program is missing."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        read_end, write_end = os.pipe() if self.follow is not None else (-1, -1)
        with open(self.log_file, "ab") as log:
            self._log_start = log.tell()
            try:
                self._process = subprocess.Popen(
                    [*self.arguments, *(("--progress-fd", str(write_end)) if self.follow is not None else ())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self.environment},
                    pass_fds=(write_end,) if self.follow is not None else (),
                    preexec_fn=dies_with(os.getpid(), signal.SIGTERM),
                )
            except OSError as error:
                if self.follow is not None:
                    os.close(read_end)
                raise SophiaError(f"{self.arguments[0]}: cannot be started ({error.strerror})") from None
            finally:
                if self.follow is not None:
                    os.close(write_end)
        self._began, self._hung = time.monotonic(), False
        if self.follow is not None:
            threading.Thread(target=self._read, args=(read_end,), name=self.name, daemon=True).start()

    def _read(self, descriptor: int) -> None:
        assert self.follow is not None
        with os.fdopen(descriptor, "r", errors="replace") as events:
            self.follow(events)

    def poll(self) -> int | None:
        """The exit code; None while the process runs. Kills the process if it hangs."""
        if self._process is None:
            return None
        if self._process.poll() is None and self._is_silent():
            self._hung = True
            self._process.kill()
            self._process.wait()
        return self._process.returncode

    def _is_silent(self) -> bool:
        if self.alive_file is None or self._process is None or not self.silent_seconds:
            return False
        try:
            touched = os.stat(self.alive_file(self._process.pid)).st_mtime
        except OSError:
            return False  # it has not begun to work yet
        return time.time() - touched > self.silent_seconds

    def why(self) -> str:
        """How the process ended: its last "error:" line, or its signal or exit code."""
        code = self.poll()
        if self._hung:
            return f"hung for more than {self.silent_seconds:.0f} s and was killed"
        if line := self.last_error():
            return line
        if code is not None and code < 0:
            return f"was killed by signal {-code}"
        return f"ended with code {code} without an error message"

    def last_error(self) -> str | None:
        """Text of the last "error:" line since the process was started; None if there is none."""
        return error_line(self.log_file, self._log_start)

    def may_restart(self) -> bool:
        """Whether ``restart`` is allowed once more."""
        if time.monotonic() - self._began > _STEADY_SECONDS:
            self.restarts = 0
        return self.restarts < self.max_restarts

    def restart(self) -> bool:
        """Start the process again after a pause that doubles each time. Returns False while the pause is not over."""
        assert self._process is not None
        if not self._next:
            self._next = time.monotonic() + min(2.0**self.restarts - 1.0, _LONGEST_PAUSE_SECONDS)
        if time.monotonic() < self._next:
            return False
        self.restarts += 1
        self._next = 0.0
        self.start()
        return True

    def ask_to_end(self) -> None:
        """Send TERM."""
        if self._process is not None:
            with suppress(OSError):
                self._process.terminate()

    def end(self) -> None:
        """Wait ``patience_seconds`` for the process to end; then send KILL."""
        if self._process is None:
            return
        try:
            self._process.wait(self.patience_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def end_all(children: Sequence[Child]) -> None:
    """Send TERM to all children, then wait for each, with KILL at the end of its patience."""
    for child in children:
        child.ask_to_end()
    for child in children:
        child.end()

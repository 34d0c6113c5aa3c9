"""Runs a worker process: its progress comes over a pipe, its output goes into a log, and it ends with its parent."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from sophia_mcore.death_signal import dies_with
from sophia_mcore.errors import TRACEBACK_ABOVE, SophiaError, UsageError

_TAIL_BYTES = 64 * 1024
_ERROR = re.compile(r"(?:\[[^\]]*\]:?\s*)?error: (.*)")  # torchrun may put "[rank0]:" before it


def run_worker(
    arguments: Sequence[str],
    *,
    log_file: Path,
    environment: Mapping[str, str],
    follow: Callable[[IO[str]], None],
    patience_seconds: float = 20.0,
) -> None:
    """Run ``arguments`` (no shell) with `--progress-fd N` appended; stdout and stderr go to ``log_file``.

    Raises SophiaError (exit 1) or UsageError (exit 2) with the worker's last "error:" line. On KeyboardInterrupt, or on
    TERM or USR1 to this process, the worker gets TERM and `patience_seconds` to stop; then KeyboardInterrupt is raised.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    read_end, write_end = os.pipe()
    with open(log_file, "ab") as log, os.fdopen(read_end, "r", errors="replace") as events:
        start = log.tell()
        try:
            child = subprocess.Popen(
                [*arguments, "--progress-fd", str(write_end)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                pass_fds=(write_end,),
                preexec_fn=dies_with(os.getpid(), signal.SIGTERM),
            )
        except OSError as error:
            raise SophiaError(f"{arguments[0]}: cannot be started ({error.strerror})") from None
        finally:
            os.close(write_end)
        try:
            with signals_interrupt():
                follow(events)
                code = child.wait()
        except BaseException:
            stop_child(child, patience_seconds)
            raise
    if code != 0:
        raise _failure(code, error_line(log_file, start), log_file)


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """In the body, the first TERM and the first USR1 raise KeyboardInterrupt. Later ones have their former effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def stop_child(child: subprocess.Popen[bytes], patience_seconds: float = 20.0) -> None:
    """Send TERM and wait ``patience_seconds``; send KILL if the process is still there."""
    child.terminate()
    try:
        child.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def error_line(log_file: Path, start: int) -> str | None:
    """Text of the last "error: ..." line after byte ``start`` of the log; None if there is none."""
    with open(log_file, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    found = [match[1] for line in lines if (match := _ERROR.match(line))]
    return found[-1] if found else None


def _failure(code: int, line: str | None, log_file: Path) -> SophiaError:
    if line is None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return SophiaError(f"the worker {how} without an error message (log: {log_file})")
    line = line.replace(TRACEBACK_ABOVE, f"details: {log_file}")
    return UsageError(line) if code == UsageError.exit_code else SophiaError(line)

"""Errors that end a command with one clear line. Everything else is a bug and keeps its traceback in the log."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

EXIT_STOPPED = 75  # a signal asked for it: the work is put down, run again to go on (EX_TEMPFAIL)
EXIT_UNHEALTHY = 76  # this node should be left out, and the work done elsewhere
EXIT_LOST = 77  # a process was killed or its node is gone: the same may succeed
EXIT_INTERRUPTED = 130  # KeyboardInterrupt, as a shell counts it
TRACEBACK_ABOVE = "the traceback is above"  # where no log file is given; `launch.process` names the log instead


class SophiaError(Exception):
    """The work failed: what, where, and what to do. Exit code 1."""

    exit_code = 1


class UsageError(SophiaError):
    """Bad usage or configuration: what is wrong, where, the nearest valid name. Exit code 2."""

    exit_code = 2


def run_command(name: str, work: Callable[[], object], log_file: Path | None = None) -> int:
    """Run ``work`` and return the exit code; a failure becomes one line on stderr.

    The traceback of what was not foreseen goes to ``log_file``, or before that line where there is none.

    Exit codes: 0 done, 1 the work failed, 2 bad usage or config, 130 interrupted.
    """
    try:
        work()
    except SophiaError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except Exception as error:  # a bug or an unforeseen failure: the traceback is for the log, not for the user
        details = traceback.format_exc()
        where = TRACEBACK_ABOVE
        try:
            if log_file is not None:
                log_file.parent.mkdir(parents=True, exist_ok=True)
                with open(log_file, "a") as file:
                    file.write(details)
                where = f"details: {log_file}"
        except OSError:
            pass  # a log that cannot be written must not hide the error
        if where == TRACEBACK_ABOVE:
            print(details, file=sys.stderr)
        first_line = (str(error).splitlines() or [""])[0]
        print(f"error: {name}: {type(error).__name__}: {first_line} ({where})", file=sys.stderr, flush=True)
        return 1
    return 0

"""Errors that end a command with one clear line. All other exceptions are bugs; their traceback goes to the log."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

EXIT_HELPER_DOWN = 69  # an engine's helper cannot be asked: starting the engine again would not help (EX_UNAVAILABLE)
EXIT_STOPPED = 75  # stopped by a signal, state is saved: run again to resume (EX_TEMPFAIL)
EXIT_UNHEALTHY = 76  # this node should be excluded, and the work done on another
EXIT_LOST = 77  # a process was killed or its node is gone: the same command may succeed
EXIT_INTERRUPTED = 130  # KeyboardInterrupt, as in a shell
# Name of an imported package -> the extra of pyproject.toml that installs it
EXTRAS = {
    "torch": "train", "megatron": "train", "numba": "train",
    "psutil": "train", "math_verify": "score", "pint": "score", "openai": "rollout", "plotly": "report",
    "datasets": "data", "mlflow": "track", "sqlalchemy": "track", "alembic": "track", "sklearn": "digits",
    "transformers": "digits", "huggingface_hub": "hub", "scipy": "score",
    "tensorboardX": "tensorboard", "openpyxl": "benchmarks", "imagehash": "benchmarks",
}  # fmt: skip
TRACEBACK_ABOVE = "the traceback is above"  # without a log file; `launch.process` puts the name of its log in place


class SophiaError(Exception):
    """The work failed. The message says what, where, and what to do. Exit code 1."""

    exit_code = 1


class UsageError(SophiaError):
    """Bad usage or configuration. The message says what is wrong, where, and the nearest valid name. Exit code 2."""

    exit_code = 2


class HelperDownError(SophiaError):
    """A helper cannot be asked, which is no fault of what it was to be asked about: the work stops, and the same
    command goes on.
    """


def listed(items: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """The first items, and how many more there are.

    >>> listed(["a", "b"], 2), listed(["a", "b", "c"], 1)
    ('a, b', 'a and 2 more')
    """
    return separator.join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def run_command(name: str, work: Callable[[], object], log_file: Path | None = None) -> int:
    """Run ``work`` and return the exit code. A failure becomes one line on stderr.

    The traceback of an unexpected exception goes to ``log_file``, or to stderr before the line if there is no log file.

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
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in EXTRAS:
            return _unforeseen(name, error, log_file)
        print(f"error: {missing_package(missing)}", file=sys.stderr, flush=True)
        return 1
    except Exception as error:  # a bug or an unexpected failure
        return _unforeseen(name, error, log_file)
    return 0


def missing_package(module: str) -> str:
    """The message about a package that is not installed: its name and how to install it."""
    alone = ", or 'sophia-mcore[convert]' for the converter alone" if module == "torch" else ""
    return (
        f"this needs the package {module.replace('_', '-')}, which this environment lacks: "
        f"pip install 'sophia-mcore[{EXTRAS[module]}]'{alone}"
    )


def _unforeseen(name: str, error: Exception, log_file: Path | None) -> int:
    """Write the traceback to the log, or to stderr without one, and one line to stderr; returns the exit code."""
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

"""The metrics log: one JSON object per line, appended atomically, readable while it grows and after any crash.

A line is ``{"step": 3, "phase": "train", "time": 1763631200.5, "loss": 1.25, ...}``: step and phase say where
the values belong, time is seconds since 1970, all other keys are the values. A value that is not finite is null.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError

RESERVED = ("step", "phase", "time")
TRAIN = "train"  # the "phase" of a line about a step of a round's training
STAGE_STEP = "rl-"  # and in front of the name of a step of `sophia rl`, whose lines stand among those of round 0
Value = float | int | str | None


class MetricsLog:
    """Appends to one metrics file; a line torn by a crash is removed when the log is opened.

    One writer at a time. Raises SophiaError when the file cannot be written (full disk, permissions).
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._file_descriptor: int | None = None

    def log(self, step: int, phase: str, values: Mapping[str, Value]) -> None:
        """Append one line. The bytes reach the kernel before this returns, so that a killed process loses no line."""
        clash = [name for name in RESERVED if name in values]
        if clash:
            raise ValueError(f"{', '.join(clash)}: reserved in a metrics line")
        line: dict[str, Value] = {"step": step, "phase": phase, "time": round(self._clock(), 3)}
        line.update((name, _plain(value)) for name, value in values.items())
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        try:
            written = os.write(self._open(), data)  # one write on an O_APPEND descriptor: whole lines only
            if written != len(data):
                os.write(self._open(), data[written:])
        except OSError as error:
            raise SophiaError(f"{self.path}: cannot be written ({error.strerror})") from None

    def rewind(self, step: int, phase: str) -> None:
        """Drop the lines of ``phase`` after ``step``: a run resumed from that step's checkpoint writes them again."""
        lines = read_metrics(self.path)
        kept = [line for line in lines if line["phase"] != phase or line["step"] <= step]
        if len(kept) == len(lines):
            return
        self.close()
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with open(temporary, "w") as file:
                file.writelines(json.dumps(line) + "\n" for line in kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise SophiaError(f"{self.path}: cannot be written ({error.strerror})") from None

    def close(self) -> None:
        """Close the file; the next `log` opens it again."""
        if self._file_descriptor is not None:
            os.close(self._file_descriptor)
            self._file_descriptor = None

    def _open(self) -> int:
        if self._file_descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            _cut_torn_line(descriptor)
            self._file_descriptor = descriptor
        return self._file_descriptor


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file, [] if it is missing. Other lines are ignored."""
    try:
        with open(path, "rb") as file:
            return list(_parse(file))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _parse(lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    for line in lines:
        if not line.endswith(b"\n"):
            return  # still being written, or torn
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int) and isinstance(value.get("phase"), str):
            yield value


def _cut_torn_line(descriptor: int) -> None:
    """Truncate the file after its last newline."""
    end = os.fstat(descriptor).st_size
    block_start = end
    while block_start > 0:
        start = max(0, block_start - 65536)
        newline = os.pread(descriptor, block_start - start, start).rfind(b"\n")
        if newline >= 0:
            block_start = start + newline + 1
            break
        block_start = start
    if block_start < end:
        os.ftruncate(descriptor, block_start)


def _plain(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value

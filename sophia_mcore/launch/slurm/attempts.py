"""Records of the attempts of Slurm tasks: RUN/slurm/attempts/PHASE-rROUND-JOB-RESTART.json.

Each file has one writer. A task that is killed leaves a record without an end.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from sophia_mcore.errors import EXIT_LOST, EXIT_STOPPED, EXIT_UNHEALTHY, SophiaError
from sophia_mcore.phase import SlurmTask
from sophia_mcore.store import atomic
from sophia_mcore.store.layout import RunFolder


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt of a task, from start to end. ``ended`` None: the task still runs, or it was killed."""

    phase: str
    round: int
    job: str  # "17", or "17_3" for an element of an array
    restart: int
    nodes: str
    began: float  # seconds since 1970
    ended: float | None = None
    code: int | None = None
    message: str = ""

    @property
    def outcome(self) -> str:
        """How the attempt ended, in words for the user."""
        names = {None: "no end seen", 0: "done", EXIT_STOPPED: "stopped by a signal"}
        names |= {EXIT_UNHEALTHY: "unhealthy node", EXIT_LOST: "lost process"}
        return names.get(self.code, "failed")


def begin_attempt(run: RunFolder, phase: str, round_index: int, task: SlurmTask) -> Attempt:
    """Record that a task has started. Raises SophiaError when writing fails."""
    attempt = Attempt(
        phase=phase, round=round_index, job=task.name, restart=task.restart, nodes=task.nodes, began=time.time()
    )
    _write(run, attempt)
    return attempt


def end_attempt(run: RunFolder, attempt: Attempt, code: int, message: str = "") -> None:
    """Record how the attempt ended. Raises SophiaError when writing fails."""
    _write(run, replace(attempt, ended=time.time(), code=code, message=message))


def note_failed(run: RunFolder, task: SlurmTask) -> None:
    """Tell job.sh not to requeue the job: this task failed by its own error, which a requeue would repeat."""
    with suppress(SophiaError):  # the disk may be full
        atomic.write_text(run.slurm.failed_file(task.job_id, task.restart), task.node + "\n")


def read_attempts(run: RunFolder) -> list[Attempt]:
    """All attempts, sorted by start. Files that cannot be read are skipped."""
    found = []
    for path in run.slurm.attempts.glob("*.json"):
        try:
            found.append(Attempt(**json.loads(path.read_bytes())))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(found, key=lambda attempt: attempt.began)


def _write(run: RunFolder, attempt: Attempt) -> None:
    name = f"{attempt.phase}-r{attempt.round}-{attempt.job}-{attempt.restart}.json"
    atomic.write_json(run.slurm.attempts / name, asdict(attempt))

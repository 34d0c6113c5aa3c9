"""Paths of what `sophia submit` and its jobs write; ``store.layout`` has all other paths of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SlurmFolder:
    """Files that `sophia submit` and the tasks of its jobs write into a run."""

    path: Path

    @property
    def lock_file(self) -> Path:
        """Held by `sophia submit` while it submits."""
        return self.path / "lock"

    @property
    def submission_file(self) -> Path:
        return self.path / "submission.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def batch_log(self, job: str) -> Path:
        """Output of job.sh itself. ``job``: "PHASE-rROUND-NUMBER", or sbatch's pattern of it."""
        return self.logs / f"{job}.batch.log"

    @property
    def attempts(self) -> Path:
        """One file per attempt of a task."""
        return self.path / "attempts"

    def failed_file(self, job: str, restart: int) -> Path:
        """Tells job.sh that a task failed by its own error, so that the job is not requeued."""
        return self.path / "failed" / f"{job}-{restart}"

    @property
    def unhealthy(self) -> Path:
        """One file per job and node: job.sh requeues the job without these nodes."""
        return self.path / "unhealthy"

    def canary(self, name: str) -> Path:
        """A small file that is written and read back to test the filesystem."""
        return self.path / f".canary-{name}"

    def code(self, digest: str) -> Path:
        """Folder of a snapshot of package and scripts."""
        return self.path / f"code-{digest[:12]}"

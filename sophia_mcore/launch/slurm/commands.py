"""Calls Slurm's commands: takes a list of arguments, returns text, raises one clear line on failure."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.slurm.jobs import Key, parse_comment

_SECONDS = 120
_FIELDS = "%i|%T|%r|%N|%k"
LIVE = {"PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "RESIZING",
        "SIGNALING", "STAGE_OUT", "STOPPED"}  # fmt: skip
NEVER = "DependencyNeverSatisfied"
_HINTS = {
    "node configuration is not available": " (no node has so many CPUs or GPUs or so much memory: #SBATCH lines of the"
    " phase's file, OPTIONS_ lines of the env file, [parallel])",
    "nvalid partition": " (OPTIONS_ lines of the env file; sinfo lists the partitions)",
    "nvalid account": " (OPTIONS_ lines of the env file)",
}
_NOT_ABOUT_THE_JOB = ("no sbatch here", "sbatch gave no answer", "contact", "configuration source")


@dataclass(frozen=True)
class QueuedJob:
    """A job, or one element of an array, as squeue shows it."""

    id: str
    state: str
    reason: str
    nodes: str
    key: Key

    @property
    def is_active(self) -> bool:
        """Whether the job waits for something that can happen, or runs. False for jobs that have ended."""
        return self.state in LIVE and NEVER not in self.reason


def call(arguments: Sequence[str]) -> str:
    """Run a Slurm command; returns its output. Raises SophiaError if it is missing, gives no answer or fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_")) or k == "SLURM_CONF"}
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_SECONDS, env=environment)
    except FileNotFoundError:
        raise SophiaError(f"no {arguments[0]} here: run this on a login node of a Slurm cluster") from None
    except subprocess.TimeoutExpired:
        raise SophiaError(f"{arguments[0]} gave no answer within {_SECONDS} s (is SLURM_CONF right?)") from None
    if done.returncode:
        raise SophiaError(_complaint(arguments[0], done.stderr or done.stdout))
    return done.stdout or done.stderr  # sbatch --test-only writes to stderr


def sbatch(command: Sequence[str], where: str) -> str:
    """Run sbatch; returns the job's number (--parsable) or the answer to --test-only.

    Raises UsageError with Slurm's message when Slurm refuses the job, SophiaError when Slurm cannot be reached.
    """
    try:
        return call(command).strip().splitlines()[-1].partition(";")[0]
    except SophiaError as error:
        if any(words in str(error) for words in _NOT_ABOUT_THE_JOB):
            raise
        hint = next((text for words, text in _HINTS.items() if words in str(error)), "")
        raise UsageError(f"{where}: {error}{hint}") from None


def queue(uid: str) -> list[QueuedJob]:
    """The run's jobs that wait, run or have ended recently. Raises SophiaError when Slurm does not answer."""
    text = call(["squeue", "--me", "--noheader", "--array", "--states=all", f"--format={_FIELDS}"])
    found = []
    for line in text.splitlines():
        parts = line.split("|")
        if len(parts) == 5 and (key := parse_comment(parts[4], uid)) is not None:
            found.append(QueuedJob(parts[0], parts[1], parts[2], parts[3], key))
    return found


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs. Slurm sends TERM to their tasks first, so that they can save."""
    if ids:
        call(["scancel", *ids])


def _complaint(program: str, text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = [
        re.sub(r"^.*?(error|fatal):", "", line).strip().removeprefix("allocation failure:").strip() for line in lines
    ]
    return f"{program}: {'; '.join(dict.fromkeys(words)) or 'failed without a message'}"

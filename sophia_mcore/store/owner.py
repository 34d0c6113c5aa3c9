"""The process that holds a work unit. Other processes on the same machine can tell whether it is dead."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that claims units. ``machine`` identifies one boot of one kernel and one process-id namespace."""

    label: str
    host: str
    pid: int
    process_start: int  # clock ticks after boot; a later process with the same pid has another start
    machine: str
    since: str
    nonce: str

    @staticmethod
    def this_process(label: str = "") -> Owner:
        """A new owner in the running process."""
        return Owner(
            label=label,
            host=socket.gethostname(),
            pid=os.getpid(),
            process_start=_process_start(os.getpid()) or 0,
            machine=_machine(),
            since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
            nonce=secrets.token_hex(8),
        )

    @staticmethod
    def parse(text: str) -> Owner | None:
        """The owner written by ``to_json``; None if the text is not one."""
        try:
            return Owner(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        label = f"{self.label}, " if self.label else ""
        return f"{label}process {self.pid} on {self.host} since {self.since}"

    def is_known_dead(self) -> bool:
        """True only if the process ran on this machine and is gone. On another machine only the lease can tell."""
        return self.machine == _machine() and _process_start(self.pid) != self.process_start


def _machine() -> str:
    """Boot id and pid namespace. Process ids can be compared only where both are the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown/{secrets.token_hex(8)}"


def _process_start(pid: int) -> int | None:
    """Start time of a live process in clock ticks after boot; None if it is gone (a zombie counts as gone)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])

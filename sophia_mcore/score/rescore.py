"""Verdicts of another verifier version: kept aside, and compared with the new ones."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sophia_mcore.records import Verdict
from sophia_mcore.store.shards import read_folder, read_metadata, shard_files

MAX_EXAMPLES = 1000


@dataclass
class VerdictChanges:
    """What changed from one verifier version to another. ``changed`` counts (old, new); ``examples`` are ids."""

    old_version: str
    new_version: str
    compared: int = 0
    changed: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[tuple[str, str, str]] = field(default_factory=list)  # id, old, new

    def add(self, identifier: str, old: str, new: str) -> None:
        """Compare one pair of verdicts."""
        self.compared += 1
        if old != new:
            self.changed[old, new] += 1
            if len(self.examples) < MAX_EXAMPLES:
                self.examples.append((identifier, old, new))

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "old_version": self.old_version,
            "new_version": self.new_version,
            "compared": self.compared,
            "changed": [{"old": a, "new": b, "count": n} for (a, b), n in sorted(self.changed.items())],
            "examples": [{"id": i, "old": a, "new": b} for i, a, b in self.examples],
        }

    def __str__(self) -> str:
        head = f"{self.changed.total()} of {self.compared} verdicts changed ({self.old_version} -> {self.new_version})"
        lines = [f"  {old} -> {new}: {count}" for (old, new), count in sorted(self.changed.items())]
        return "\n".join([head, *lines])


def set_aside(folder: Path, version: str, unit_ids: Iterable[str]) -> Path | None:
    """Rename ``folder`` if it holds verdicts of another version or of other units; returns where they are now.

    Several processes may try at once: one succeeds, and a folder that has been started anew is not moved.
    """
    if not folder.is_dir():
        return None
    wanted = set(unit_ids)
    old = ""
    for shard in shard_files(folder):
        with contextlib.suppress(FileNotFoundError):
            found = str(read_metadata(shard)["metadata"].get("verifier_version", ""))
            if found != version:
                old = found or "unknown"
            elif shard.stem not in wanted:
                old = f"{found}-other-units"
    if not old:
        return None
    target = free_name(folder, old)
    try:
        folder.rename(target)
    except OSError:  # another process was faster
        return None
    return target


def free_name(path: Path, version: str) -> Path:
    """A name beside ``path`` for its content of another version."""
    label = re.sub(r"[^A-Za-z0-9.+-]+", "_", version)
    names = (f"{path.stem}.{label}{'' if n == 0 else f'.{n}'}{path.suffix}" for n in range(10_000))
    return next(candidate for name in names if not (candidate := path.with_name(name)).exists())


def compare_folders(old: Path, new: Path, old_version: str, new_version: str) -> VerdictChanges:
    """Changes between two folders of verdict shards, for the trajectories that both have."""
    changes = VerdictChanges(old_version, new_version)
    before = {verdict.trajectory_id: verdict.verdict for verdict in read_folder(old, Verdict)}
    for verdict in read_folder(new, Verdict):
        if verdict.trajectory_id in before:
            changes.add(verdict.trajectory_id, before[verdict.trajectory_id], verdict.verdict)
    return changes


def newest_archive(folder: Path) -> Path | None:
    """The verdicts set aside last, if any."""
    found = [path for path in folder.parent.glob(f"{folder.name}.*") if path.is_dir()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)

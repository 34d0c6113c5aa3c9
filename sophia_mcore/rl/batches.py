"""Open batches: what the trainer asks of the engines. A file in the batch's folder says it, and nothing else does.

ROLLOUTS/00000012/units.json          batch 12; 00000012.1 is a further draw of questions for it
ROLLOUTS/00000012/*.parquet           one shard of records.Rollout per finished unit
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.units import Unit, UnitQueue, units_of

UNITS = "units.json"
LEASE_SECONDS = 120.0
_FOLDER = re.compile(r"(\d{8,})(?:\.(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """An open batch. ``minimum_version``: of the policy that may answer; items of ``units`` are question ids."""

    folder: Path
    batch: int
    minimum_version: int
    units: tuple[Unit, ...]

    def queue(self, attempts: int, lease_seconds: float = LEASE_SECONDS) -> UnitQueue:
        """Its work units, lowest first. Raises SophiaError when the folder holds shards of other units."""
        return UnitQueue(self.folder, self.units, "rollouts", lease_seconds, attempts=attempts, in_order=True)


def open_batch(
    folder: Path,
    *,
    batch: int,
    minimum_version: int,
    first_position: int,
    question_ids: Sequence[str],
    questions_per_unit: int,
) -> None:
    """Open a batch; engines begin with it at once. ``first_position``: of its questions in the stream."""
    units = [{"id": unit.id, "items": list(unit.items)} for unit in units_of(question_ids, questions_per_unit)]
    value = {
        "batch": batch,
        "minimum_version": minimum_version,
        "first_position": first_position,
        "units": units,
        "questions_per_unit": questions_per_unit,
    }
    write_json(folder / UNITS, value)


def read_batch(folder: Path) -> Batch | None:
    """The batch of a folder; None while it is not open. Raises SophiaError for a file that holds something else."""
    path = folder / UNITS
    try:
        value = json.loads(path.read_bytes())
        units = tuple(Unit(unit["id"], tuple(unit["items"])) for unit in value["units"])
        return Batch(
            folder=folder, batch=int(value["batch"]), minimum_version=int(value["minimum_version"]), units=units
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SophiaError(f"{path}: not the units of a batch ({error!r})") from None


def batch_folders(rollouts: Path) -> list[Path]:
    """The folders of all batches, open or not, lowest first, further draws behind their batch."""
    found = [
        (int(match[1]), int(match[2] or 0), path)
        for path in (rollouts.iterdir() if rollouts.is_dir() else ())
        if (match := _FOLDER.fullmatch(path.name))
    ]
    return [path for _, _, path in sorted(found)]

"""Captions, trajectories and answers alike: the units of a phase that are not done are sampled, one shard per unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Engine
from sophia_mcore.generate.filling import Tally, fill
from sophia_mcore.generate.phase import Asked
from sophia_mcore.generate.unit_work import UnitWork, WholeUnit
from sophia_mcore.progress import Progress, counting
from sophia_mcore.store.shards import read_metadata
from sophia_mcore.store.units import Held, Unit, UnitQueue, run_joined


def run_phase(
    name: str,
    queue: UnitQueue,
    record_type: type,
    engine: Engine,
    progress: Progress,
    *,
    ask: Callable[[Unit], Sequence[Asked[Any]]],
    grade: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
    settings: Mapping[str, str],
) -> int:
    """Sample every unit that is not done; returns how many units this process finished.

    ``ask`` gives the requests of a unit, ``grade`` turns all its records into what is stored (None: the records
    themselves). ``settings`` (such as the hash of the prompt template) go into the shards' metadata beside the model's
    digest. Raises SophiaError when shards that are there were made by another model or with other settings.
    """
    return sample_units(
        name,
        queue,
        record_type,
        engine,
        progress,
        begin=lambda unit, digest: WholeUnit(unit, ask(unit), digest, grade),
        settings=settings,
    )


def sample_units(
    name: str,
    queue: UnitQueue,
    record_type: type,
    engine: Engine,
    progress: Progress,
    *,
    begin: Callable[[Unit, str], UnitWork],
    settings: Mapping[str, str],
    cutting: bool = False,
) -> int:
    """As ``run_phase``; ``begin(unit, model digest)`` replaces ``ask`` and ``grade``, ``cutting``: see ``fill``."""
    metadata: dict[str, str] = dict(settings)
    tally = Tally(progress)

    def work(unit: Unit, held: Held) -> None:
        if "model_digest" not in metadata:
            digest = engine.model_digest  # opens the engine
            _check_same(queue, {**metadata, "model_digest": digest})
            metadata["model_digest"] = digest
        fill(unit, held, engine, lambda one: begin(one, metadata["model_digest"]), tally, cutting=cutting)

    return run_joined(queue, record_type, work, counting(progress, name), metadata=metadata)


def _check_same(queue: UnitQueue, metadata: Mapping[str, str]) -> None:
    done = sorted(queue.done_units())
    if not done:
        return
    shard = queue.shard(queue.units[done[0]])
    found = read_metadata(shard)["metadata"]
    different = [key for key, value in metadata.items() if found.get(key, value) != value]
    if different:
        raise SophiaError(
            f"{shard} was made with another {' and '.join(different).replace('_', ' ')}: "
            f"remove {queue.folder} to begin anew, or use another run folder"
        )

"""Steps before a phase works: move results aside that are no longer valid, and record the settings and inputs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.phase import Part, Phase
from sophia_mcore.provenance.check import Provenance, Verdict
from sophia_mcore.store.atomic import write_failed, write_json
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lock import folder_lock

Say = Callable[[str], None]


def adopt(provenance: Provenance) -> list[str]:
    """Record, for results of an older version without records, that they were made with the present settings.

    That is an assumption: the records are marked ``adopted``. Returns the names of the phases of these results.
    """
    found = []
    for phase, index, part in list(provenance.all_parts()):
        verdict = provenance.verdict(phase, index, part)
        if verdict.unchecked:
            found.append(phase.name)
            if provenance.record(phase, index, part) is None:
                provenance.write(phase, index, part, adopted=True)
    return list(dict.fromkeys(found))


def prepare(provenance: Provenance, phase: Phase, index: int, say: Say, *, again: bool = False) -> None:
    """Move invalid results of a phase aside and record the settings and inputs of the results to be made.

    ``again``: move valid results aside too. Results are never deleted. Several processes that begin the same phase may
    call this at once; the first one does the work. Raises SophiaError when the folder cannot be written.
    """
    if phase.again or not provenance.parts(phase, index):
        return
    lock = provenance.run.records(index, phase.name) / "lock"
    with folder_lock(lock, wait=True):
        provenance.forget_results()
        found = [(part, provenance.verdict(phase, index, part)) for part in provenance.parts(phase, index)]
        for part, verdict in found:  # all parts are checked before any is moved
            _prepare(provenance, phase, index, part, verdict, say, again=again)


def _prepare(
    provenance: Provenance, phase: Phase, index: int, part: Part, verdict: Verdict, say: Say, *, again: bool
) -> None:
    record = provenance.record(phase, index, part)
    if verdict.there and not verdict.stale and not again:
        if record is None:
            provenance.write(phase, index, part, adopted=True)
        return
    present = provenance.present(phase, index, part)
    same = record is not None and record.matches(present)
    if not verdict.there and same:
        return
    if verdict.there or record is not None:
        why = "; ".join(verdict.reasons) or "--from"
        target = set_aside(provenance.run, [*part.beside, *part.results.values()], why)
        if target is not None and verdict.there:
            say(f"{phase.name} of round {index} is done again ({why}); its earlier results are in {target}")
        provenance.forget_results()
    provenance.write(phase, index, part)


def set_aside(run: RunFolder, paths: Iterable[Path], why: str) -> Path | None:
    """Move ``paths`` into a new folder of RUN/aside; returns that folder, or None if none of the paths exists."""
    there = [path for path in paths if path.exists()]
    if not there:
        return None
    try:
        target = _new_folder(run.aside)
        write_json(run.why_file(target), {"why": why, "time": round(time.time(), 3)})
        for path in there:
            if path.exists():  # it may lie inside a folder that has just been moved
                goal = target / path.relative_to(run.path)
                goal.parent.mkdir(parents=True, exist_ok=True)
                os.rename(path, goal)
    except OSError as error:
        raise write_failed(run.aside, error) from error
    return target


def _new_folder(aside: Path) -> Path:
    aside.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(10_000):
        target = aside / (f"{stamp}-{number}" if number else stamp)
        try:
            target.mkdir()
        except FileExistsError:
            continue
        return target
    raise SophiaError(f"{aside}: no free name for {stamp}")

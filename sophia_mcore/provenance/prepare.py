"""Before a phase works: what does not hold any more goes aside, and it is written down what the work is made from."""

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
    """Write down, for results of a version that kept no records, that they were made with these settings.

    Returns the names of their phases. Nothing is known against these results, and nothing for them.
    """
    found = []
    for phase, index, part in list(provenance.everything()):
        verdict = provenance.verdict(phase, index, part)
        if verdict.unchecked:
            found.append(phase.name)
            if provenance.record(phase, index, part) is None:
                provenance.write(phase, index, part, adopted=True)
    return list(dict.fromkeys(found))


def prepare(provenance: Provenance, phase: Phase, index: int, say: Say, *, again: bool = False) -> None:
    """Set aside what does not hold (``again``: whatever there is), and write down what is made now.

    Any number of processes that begin the same phase may call this at once; the first does it. Results are moved, not
    deleted. Raises SophiaError when the folder cannot be written.
    """
    if phase.again or not provenance.parts(phase, index):
        return
    lock = provenance.run.records(index, phase.name) / "lock"
    with folder_lock(lock, wait=True):
        provenance.look_again()
        found = [(part, provenance.verdict(phase, index, part)) for part in provenance.parts(phase, index)]
        for part, verdict in found:  # judged before any is moved
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
    same = record is not None and record.says_the_same(present)
    if not verdict.there and same:
        return
    if verdict.there or record is not None:
        why = "; ".join(verdict.reasons) or "--from"
        target = set_aside(provenance.run, [*part.beside, *part.results.values()], why)
        if target is not None and verdict.there:
            say(f"{phase.name} of round {index} is done again ({why}); what was there is in {target}")
        provenance.look_again()
    provenance.write(phase, index, part)


def set_aside(run: RunFolder, paths: Iterable[Path], why: str) -> Path | None:
    """Move ``paths`` into a new folder of RUN/aside and return that folder; None when nothing is there."""
    there = [path for path in paths if path.exists()]
    if not there:
        return None
    try:
        target = _new_folder(run.aside)
        write_json(target / "why.json", {"why": why, "time": round(time.time(), 3)})
        for path in there:
            if path.exists():  # not inside of one that has been moved
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

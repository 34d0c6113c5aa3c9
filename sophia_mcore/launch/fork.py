"""`sophia fork`: begins a variant of a run that shares all results which are valid under the variant's settings."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sophia_mcore.config import dump_toml, load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.launch.local import open_run
from sophia_mcore.launch.phases import phases_in, starting_at
from sophia_mcore.phase import Part, Phase
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.store.atomic import write_failed, write_json, write_text
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import run_uid
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.track.metrics import read_metrics

_OF_WORKERS = ("lock", "claims", "failures")  # files of processes that work in the source; they are not shared
_APPENDED = ".jsonl"  # suffix of files that grow in place and must be copied

Place = tuple[Phase, int, Part]


@dataclass(frozen=True, kw_only=True)
class Fork:
    """A new fork. ``shared``: phases that share results with the source. ``left``: phases that are to be done.

    A phase can be in both. For example, the verdicts of the score phase may be valid when its kept set is not.
    """

    run: RunFolder
    shared: list[str]
    left: list[str]

    def __str__(self) -> str:
        whole = ", ".join(name for name in self.shared if name not in self.left) or "nothing"
        partly = ", ".join(name for name in self.shared if name in self.left)
        return (
            f"{self.run.path} shares {whole}{' and a part of ' * bool(partly)}{partly}; "
            f"to be done: {', '.join(self.left) or 'nothing'}\n"
            f"next: sophia run {self.run.config_file}"
        )


def fork(
    source: Path, target: Path, *, first: str | None = None, overlays: Sequence[Path] = (), sets: Sequence[str] = ()
) -> Fork:
    """Begin a run in ``target`` with the settings of ``source``, changed by ``overlays`` and ``sets``.

    Results that are valid under these settings are shared by hard links (copied on another filesystem), except results
    of phase ``first`` and later phases. The source is not changed. Raises UsageError when ``target`` exists or lies in
    the source. Raises SophiaError when a local run works in the source or the disk is full.
    """
    run, before = open_run(source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target}: is there already; a fork begins in a new folder")
    if target.resolve().is_relative_to(run.path.resolve()):
        raise UsageError(f"{target}: lies in the run that is to be forked, {run.path}")
    config = _settings(run, target, overlays, sets)
    excluded = starting_at(first) if first else []
    with folder_lock(run.lock_file, shared=True):
        new = Provenance(config, run, phases_in("round"), assumed=before)
        shared = _still_valid(new, excluded)
        temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
        try:
            temporary.mkdir(parents=True)
            _fill(RunFolder(temporary), run, config, new, shared)
            if target.exists():  # an empty folder
                target.rmdir()
            os.rename(temporary, target)
        except OSError as error:
            raise write_failed(target, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    names = {phase.name for phase, _, _ in shared}
    there = {(phase.name, index, part.name) for phase, index, part in shared}
    left = [p.name for p, index, part in new.all_parts() if (p.name, index, part.name) not in there]
    return Fork(
        run=RunFolder(target),
        shared=[phase.name for phase in phases_in("round") if phase.name in names],
        left=[phase.name for phase in phases_in("round") if phase.name in left or phase.again],
    )


def _settings(run: RunFolder, target: Path, overlays: Sequence[Path], sets: Sequence[str]) -> Config:
    if any(assignment.partition("=")[0].strip() == "run.folder" for assignment in sets):
        raise UsageError("--set run.folder: the second argument of 'sophia fork' is the new run's folder")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", target.absolute().name)
    own = [f"run.folder={json.dumps(str(target))}", f"run.name={json.dumps(name)}"]
    return load_config(run.config_file, overlays, [*own, *sets])


def _still_valid(new: Provenance, excluded: Iterable[str]) -> list[Place]:
    """The parts of the source that are valid under the new settings, together with all their inputs."""
    excluded, shared = set(excluded), []
    refused: set[tuple[str, int, str]] = set()
    for phase, index, part in new.all_parts():
        if not new.is_there(part):
            continue
        upstream = {(maker.name, when, made.name) for maker, when, made in new.makers(part)}
        if phase.name in excluded or new.verdict(phase, index, part).stale or upstream & refused:
            refused.add((phase.name, index, part.name))
        else:
            shared.append((phase, index, part))
    return shared


def _fill(target: RunFolder, run: RunFolder, config: Config, provenance: Provenance, shared: Sequence[Place]) -> None:
    _link(run.images, target.images)
    for phase, index, part in shared:
        for path in (*part.beside, *part.results.values()):
            _link(path, target.path / path.relative_to(run.path))
        record = provenance.record_file(phase, index, part)
        if record.is_file():
            _link(record, target.path / record.relative_to(run.path))
    names = sorted({phase.name for phase, _, _ in shared})
    lines = [line for line in read_metrics(run.metrics_file) if line["phase"] in names]
    write_text(target.metrics_file, "".join(json.dumps(line) + "\n" for line in lines))
    write_text(target.config_file, dump_toml(config))
    origin = {
        "path": str(run.path.absolute()),
        "uid": run_uid(run.path),
        "shared": names,
        "time": round(time.time(), 3),
    }
    earlier = json_or_empty(run.fork_file)
    write_json(target.fork_file, origin | ({"forked_from": earlier} if earlier else {}))


def _link(source: Path, target: Path) -> None:
    """Hard-link all files of ``source``. Copy files that grow, and files that cannot be linked. Keep existing files."""
    if source.is_dir():
        for child in sorted(source.iterdir()):
            if child.name not in _OF_WORKERS and not child.name.startswith("."):
                _link(child, target / child.name)
    elif source.is_file() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if source.suffix == _APPENDED:
                shutil.copyfile(source, target)
            else:
                os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)

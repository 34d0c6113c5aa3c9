"""`sophia run`: runs the phases of a run in order on this machine. A second call resumes; finished work is kept."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from sophia_mcore.config import dump_toml, load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError, listed
from sophia_mcore.launch import phases
from sophia_mcore.launch.environments import preflight, run_here
from sophia_mcore.launch.models import with_local_models
from sophia_mcore.launch.phases import phases_of, starting_at
from sophia_mcore.launch.state import check_unfinished, require_valid_inputs
from sophia_mcore.launch.terminal import TerminalProgress
from sophia_mcore.phase import Phase
from sophia_mcore.provenance.check import Provenance, unchecked_line
from sophia_mcore.provenance.prepare import adopt, prepare
from sophia_mcore.provenance.settings import differing, flat, relevant
from sophia_mcore.store.atomic import write_failed, write_json, write_text
from sophia_mcore.store.content import Contents
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.store.user_files import keep_user_files
from sophia_mcore.track.metrics import MetricsLog


def run_phases(
    config: Config, names: Iterable[str], rounds: Iterable[int], *, new_settings: bool = False, again: str | None = None
) -> RunFolder:
    """Run the phases ``names`` (in flow order) of each round in the run's folder, holding its lock; returns the folder.

    ``again``: do this phase and all later phases of the first round again, even if they are finished. After an
    interruption the same call resumes. Later rounds are then run with all their phases.

    Raises UsageError when finished work depends on settings that have changed (unless ``new_settings``). Raises
    SophiaError when another process works in the folder, when a phase fails, or when an input of a later phase cannot
    be used (`launch.inputs`; these are checked first).
    """
    indices, chosen = list(rounds), set(names)
    config = with_local_models(config, chosen, download=True)
    check_unfinished(config, RunFolder(config.run.folder), chosen, indices)
    folder = make_folder(config)
    with folder_lock(folder.lock_file), TerminalProgress() as progress:
        claim_folder(config, folder, new_settings=new_settings, again=again)
        try:
            _run_rounds(config, folder, chosen, indices, again, progress)
        except SophiaError:
            if any(phase.again for phase in phases.PHASES if phase.name in chosen):
                _report_anyway(config, folder, progress)
            raise
        folder.again_file.unlink(missing_ok=True)
    return folder


def _run_rounds(
    config: Config,
    folder: RunFolder,
    chosen: set[str],
    indices: list[int],
    again: str | None,
    progress: TerminalProgress,
) -> None:
    metrics = MetricsLog(folder.metrics_file)
    checked = False
    renewed = _begin_again(folder, again) if again else ()
    for index in indices:
        current = Round(config, folder, index)
        for phase in phases_of(index):
            if not phase.wanted(config) or (phase.name not in chosen and not (again and index > indices[0])):
                continue
            if phase.preflight and not checked:
                preflight(current)
                checked = True
            began = time.monotonic()
            redo = index == indices[0] and phase.name in renewed
            require_valid_inputs(phase, current)
            prepare(Provenance(config, folder, phases.PHASES), phase, index, progress.say, again=redo)
            if redo:
                _note_renewed(folder, phase.name)
            _run_phase(phase, current, progress)
            metrics.log(index, phase.name, {"seconds": round(time.monotonic() - began, 3)})


def _report_anyway(config: Config, folder: RunFolder, progress: TerminalProgress) -> None:
    """Write the report after a phase has failed, if there are verdicts: it shows answers, and why none was kept."""
    from sophia_mcore.report.build import write_report

    if not any(any(folder.round(index).verdicts.glob("*.parquet")) for index in folder.rounds()):
        return
    try:
        progress.say(f"report of the results so far: {write_report(config, folder, phases.PHASES)}")
    except Exception as error:  # the error of the phase is more important
        progress.say(f"no report: {type(error).__name__}: {error}")


def _begin_again(run: RunFolder, first: str) -> list[str]:
    """The phases still to be started again: all from ``first`` on, or the rest of an interrupted call."""
    found = json_or_empty(run.again_file)
    if found.get("from") != first or not isinstance(found.get("left"), list):
        found = {"from": first, "left": starting_at(first)}
        write_json(run.again_file, found)
    return list(found["left"])


def _note_renewed(run: RunFolder, name: str) -> None:
    found = json_or_empty(run.again_file)
    write_json(run.again_file, found | {"left": [phase for phase in found["left"] if phase != name]})


def make_folder(config: Config) -> RunFolder:
    """Make the run's folder if it is missing, and return it. Raises SophiaError when that fails."""
    folder = RunFolder(config.run.folder)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failed(folder.path, error) from error
    return folder


def _run_phase(phase: Phase, round: Round, progress: TerminalProgress) -> None:
    """Run a phase. An unexpected exception goes to the log with its traceback and becomes a SophiaError of one line."""
    try:
        run_here(phase, round, progress)
    except SophiaError:
        raise
    except Exception as error:
        log = round.run.logs / f"{phase.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            traceback.print_exception(error, file=file)
        line = (str(error).splitlines() or [""])[0]
        raise SophiaError(f"{phase.name}: {type(error).__name__}: {line} (details: {log})") from error


def claim_folder(config: Config, folder: RunFolder, *, new_settings: bool = False, again: str | None = None) -> None:
    """Write the resolved configuration into the run's folder.

    Raises UsageError, naming phases and settings, if finished work depends on a setting or file that has changed.
    ``new_settings``: accept changes; the results that depend on them are made again when their phase runs. ``again``:
    accept changes for this phase and later ones, because they are done again anyway.
    """
    before = _settings_so_far(folder)
    if before is not None and before.stages is not None:
        raise UsageError(f"{folder.path} holds a run of several stages: choose another run.folder")
    if before is not None:
        old = adopt(Provenance(before, folder, phases.PHASES))
        if old:
            print(f"note: {unchecked_line(folder, old)}", file=sys.stderr, flush=True)
    known, refusal = _changes(config, folder, before, starting_at(again) if again else [])
    if refusal and not new_settings:
        raise UsageError(refusal)
    keep_user_files(config, folder, replace=new_settings or not refusal)
    if before is not None:
        _print_accepted(before, config, known)
    write_text(folder.config_file, dump_toml(config))


def would_refuse_settings(config: Config, folder: RunFolder) -> str:
    """The error that `claim_folder` would raise; "" if none. Writes nothing."""
    return _changes(config, folder, _settings_so_far(folder), [])[1]


def _settings_so_far(folder: RunFolder) -> Config | None:
    return load_config(folder.config_file) if folder.config_file.is_file() else None


def _changes(config: Config, folder: RunFolder, before: Config | None, renewed: list[str]) -> tuple[set[str], str]:
    """Keys of changed settings on which finished work depends, and the text of the refusal ("" if not refused)."""
    changes = Provenance(config, folder, phases.PHASES, assumed=before).changed()
    known = {key for changed in changes.values() for key in changed}
    refused = {phase: changed for phase, changed in changes.items() if phase not in renewed}
    if not refused:
        return known, ""
    keys = {key: change for changed in refused.values() for key, change in changed.items()}
    shown = listed([f"{key} {change}" for key, change in keys.items()])
    depend = f"{', '.join(refused)} {'depends' if len(refused) == 1 else 'depend'} on them"
    return known, (
        f"{folder.path} was started with other settings ({shown}), and {depend}: choose "
        "another run.folder, begin a variant with 'sophia fork', or add --new-settings to do again what depends on them"
    )


def _print_accepted(before: Config, now: Config, known: set[str]) -> None:
    """Print which settings have changed although no finished work depends on them."""
    contents = Contents()
    old, new = (relevant(flat(config), [*type(config).model_fields], contents) for config in (before, now))
    changed = {key: change for key, change in differing(old, new).items() if key not in known}
    if changed:
        listed = ", ".join(f"{key} {change}" for key, change in changed.items())
        print(f"note: changed before any work that depends on it was finished: {listed}", file=sys.stderr, flush=True)


def open_run(path: Path) -> tuple[RunFolder, Config]:
    """Open a run by its folder, which may have been moved, or by its config file; returns (folder, configuration).

    Raises UsageError when ``path`` is neither, when the run of the config file has not begun, or when it is a run of
    several stages, each of which is a run.
    """
    folder, config = open_any_run(path)
    if config.stages is not None:
        there = sorted(one.name for one in folder.stages.glob("*") if one.is_dir())
        raise UsageError(f"{folder.path} is a run of several stages; name one of {folder.stages}: {', '.join(there)}")
    return folder, config


def open_any_run(path: Path) -> tuple[RunFolder, Config]:
    """As ``open_run``, but the run may be one of several stages."""
    if path.is_dir():
        folder = RunFolder(path)
        if not folder.config_file.is_file():
            raise UsageError(f"{path}: not a run folder (it has no config.toml)")
        return folder, load_config(folder.config_file)
    if not path.exists():
        raise UsageError(f"{path}: no such run folder or configuration file")
    config = load_config(path)
    folder = RunFolder(config.run.folder)
    if not folder.config_file.is_file():
        raise UsageError(f"{folder.path}: nothing has been run there yet (`sophia run {path}`)")
    return folder, config

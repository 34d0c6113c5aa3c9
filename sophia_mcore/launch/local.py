"""A whole run on this machine: every phase in order, each resumable; run again, finished work is not redone."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sophia_mcore.config import dump_toml, load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.environments import preflight, run_here
from sophia_mcore.launch.phases import phases_of
from sophia_mcore.launch.state import check_unfinished
from sophia_mcore.launch.terminal import TerminalProgress
from sophia_mcore.phase import Phase
from sophia_mcore.store.atomic import write_failed, write_text
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.store.user_files import keep_user_files
from sophia_mcore.track.metrics import MetricsLog

# What may change between two starts of one run: it decides where and how fast work is done, not its result.
_CHANGEABLE = {
    ("environments",), ("track",), ("cluster",), ("run", "rounds"), ("run", "folder"), ("score", "workers"),
    ("captions", "engine"),
    ("reasoning", "engine"), ("evaluate", "engine"), ("train", "save_every_steps"), ("train", "keep_checkpoints"),
    ("train", "threads_per_process"), ("train", "distributed_timeout_seconds"), ("export",),
    ("score", "timeout_seconds"), ("score", "memory_limit_mib"), ("score", "max_broken_share"),
}  # fmt: skip


def run_phases(config: Config, names: Iterable[str], rounds: Iterable[int], *, new_settings: bool = False) -> RunFolder:
    """Run the phases ``names`` (in flow order) of each round in the run's folder, holding its lock.

    Raises UsageError when the folder belongs to a different configuration (unless ``new_settings``),
    SophiaError when another process works in it or when a phase fails; before any phase, the same for what a later
    phase reads (`launch.inputs`).
    """
    folder = RunFolder(config.run.folder)
    rounds, chosen = list(rounds), set(names)
    check_unfinished(config, folder, chosen, rounds)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failed(folder.path, error) from error
    with folder_lock(folder.lock_file), TerminalProgress() as progress:
        claim_folder(config, folder, new_settings=new_settings)
        metrics = MetricsLog(folder.metrics_file)
        checked = False
        for index in rounds:
            current = Round(config, folder, index)
            for phase in phases_of(index):
                if phase.name not in chosen or not phase.wanted(config):
                    continue
                if phase.preflight and not checked:
                    preflight(current)
                    checked = True
                began = time.monotonic()
                _run_phase(phase, current, progress)
                metrics.log(index, phase.name, {"seconds": round(time.monotonic() - began, 3)})
    return folder


def _run_phase(phase: Phase, round: Round, progress: TerminalProgress) -> None:
    """Run a phase; what it did not foresee goes to the log with its traceback and becomes one line."""
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


def claim_folder(config: Config, folder: RunFolder, *, new_settings: bool = False) -> None:
    """Write the resolved configuration, or check that the folder's own is the same where results depend on it."""
    if folder.config_file.is_file() and not new_settings:
        changed = sorted(_differences(load_config(folder.config_file), config))
        if changed:
            shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
            raise UsageError(
                f"{folder.path} was started with other settings ({shown}): choose another run.folder, "
                "or add --new-settings to go on with the new ones from the first unfinished phase"
            )
    keep_user_files(config, folder, replace=new_settings)
    write_text(folder.config_file, dump_toml(config))


def _differences(old: Config, new: Config) -> set[str]:
    def flat(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
        if any(path[: len(free)] == free for free in _CHANGEABLE):
            return {}
        if isinstance(tree, dict):
            return {key: value for name, child in tree.items() for key, value in flat(child, (*path, name)).items()}
        return {path: tree}

    before, after = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    return {".".join(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def open_run(path: Path) -> tuple[RunFolder, Config]:
    """A run by its folder (wherever it was moved to) or by its config file.

    Raises UsageError when it is neither, or when the config's run has not begun.
    """
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

"""`sophia submit`: submits the jobs that a run still needs, as a chain of dependencies. Also `sophia cancel`."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sophia_mcore
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.environments import preflight
from sophia_mcore.launch.local import claim_folder, would_refuse_settings
from sophia_mcore.launch.models import with_local_models
from sophia_mcore.launch.phases import names_in, wanted_phases
from sophia_mcore.launch.rl import preflight as stage_preflight
from sophia_mcore.launch.slurm import commands as slurm
from sophia_mcore.launch.slurm.jobs import Job, Key, Site, plan_jobs, read_site, sbatch_command, shell_lines
from sophia_mcore.launch.stage_settings import accept_changed_settings, refuse_changed_settings
from sophia_mcore.launch.state import check_unfinished, stage_states, states
from sophia_mcore.phase import PhaseState
from sophia_mcore.store.atomic import write_json, write_text
from sophia_mcore.store.failures import forget_failures
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.lineage import run_uid
from sophia_mcore.store.lock import folder_lock

_FAILURES = (
    *("round-*/*/failures", "evaluation/*/*/failures"),
    *("rl/select/failures", "rl/rollouts/*/failures", "rl/validation/*/*/failures"),
)


@dataclass(frozen=True)
class Submission:
    """The jobs of a submission in order. ``answers``: their numbers, or Slurm's answers in a dry run.

    ``notes``: what a dry run had to do without on this machine, a line each.
    """

    jobs: list[Job]
    answers: dict[Key, str]
    commands: list[list[str]]
    notes: tuple[str, ...] = ()


def submit(
    config: Config,
    rounds: int | None = None,
    *,
    only: Collection[str] | None = None,
    new_settings: bool = False,
    stage: bool = False,
) -> Submission:
    """Snapshot code and configuration, and submit a job for each phase that is not finished.

    ``only``: only these phases. ``stage``: the on-policy stage instead of the rounds. Raises UsageError when settings,
    env file or an input of a later phase cannot be used, when jobs of this run are still alive, or when Slurm refuses a
    job (then none stays submitted). Raises SophiaError when another process works in the folder, when Slurm does not
    answer or when writing fails.
    """
    run = RunFolder(config.run.folder)
    site = read_site(config.cluster.env_file)
    check_scripts(config, stage=stage)
    number = rounds or config.run.rounds
    names = only or names_in("stage" if stage else "round")
    config = with_local_models(config, names, download=True)
    if not stage:
        check_unfinished(config, run, names, range(number))
    with ExitStack() as locks:
        uid = locks.enter_context(no_jobs_alive(run))
        locks.enter_context(folder_lock(run.lock_file))  # tasks of running jobs hold this lock too
        if stage:
            accept_changed_settings(config, run, _say, new_settings=new_settings)
        claim_folder(config, run, new_settings=new_settings)
        (stage_preflight if stage else preflight)(Round(config, run, 0))
        for pattern in _FAILURES:
            for failures in run.path.glob(pattern):
                forget_failures(failures.parent)
        jobs = plan_jobs(config, site, _states(config, run, number, only, stage=stage))
        code = snapshot(config, run)
        run.slurm.logs.mkdir(parents=True, exist_ok=True)
        for job in jobs:
            slurm.sbatch(sbatch_command(job, run, code, uid, {}, test_only=True), job.name)
        return _submit(run, jobs, lambda job, ids: sbatch_command(job, run, code, uid, ids), number, code)


def dry_run(
    config: Config,
    rounds: int | None = None,
    only: Collection[str] | None = None,
    *,
    stage: bool = False,
    found: Sequence[PhaseState] | None = None,
) -> Submission:
    """The submission that `submit` would make, with Slurm's answer to each job (--test-only). Writes nothing.

    ``found``: the states that `submit` would find; None: as they are now. Before there is an env file, an example is
    read in its place. Where Slurm gives no answer, a note says so.
    """
    run = RunFolder(config.run.folder)
    site, notes = site_or_example(config)
    check_scripts(config, stage=stage)
    if found is None:
        found = _states(config, run, rounds or config.run.rounds, only, stage=stage)
    jobs = plan_jobs(config, site, found)
    scripts = config.cluster.scripts
    answers: dict[Key, str] = {}
    try:
        for job in jobs:
            answers[job.key] = _answer(job, run, scripts)
    except SophiaError as error:
        notes += (f"Slurm was not asked: {error}",)
    if to_download := _models_here(config, stage=stage)[1]:
        notes += (f"{to_download}; submit does this first, and then checks the model",)
    ids = {job.key: f"<{job.name}>" for job in jobs}
    return Submission(jobs, answers, [sbatch_command(job, run, scripts, "dry", ids) for job in jobs], notes)


def _answer(job: Job, run: RunFolder, scripts: Path) -> str:
    try:
        return slurm.sbatch(sbatch_command(job, run, scripts, "dry", {}, test_only=True), job.name)
    except UsageError as error:
        return "refused: " + str(error).removeprefix(f"{job.name}: ")


def site_or_example(config: Config) -> tuple[Site, tuple[str, ...]]:
    """The env file's settings, and notes. Before there is an env file, an example is read in its place."""
    path, example = config.cluster.env_file, config.cluster.scripts / "env" / "venv.env.example"
    if "env_file" in config.cluster.model_fields_set or path.exists() or not example.is_file():
        return read_site(path), ()
    return read_site(example), (f"{path} is not there yet: options of {example}; copy it there and edit it",)


def _states(
    config: Config, run: RunFolder, rounds: int, only: Collection[str] | None, *, stage: bool
) -> list[PhaseState]:
    found = stage_states(config, run) if stage else states(config, run, range(rounds))
    return [state for state in found if only is None or state.phase in only]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def would_refuse(config: Config, *, new_settings: bool = False, stage: bool = False) -> str:
    """The error about settings, models or inputs with which `submit` would stop; "" if none.

    ``new_settings``: changed settings are accepted, and not looked at. Models that `submit` would download first are
    not looked at either (`dry_run` notes them).
    """
    run = RunFolder(config.run.folder)
    config, to_download = _models_here(config, stage=stage)
    changed = "" if new_settings else would_refuse_settings(config, run)
    if changed:
        return changed
    try:
        if stage:
            if not new_settings:
                refuse_changed_settings(config, run)
        else:
            check_unfinished(config, run, names_in("round"), range(config.run.rounds))
        if not to_download:
            (stage_preflight if stage else preflight)(Round(config, run, 0))
    except SophiaError as error:
        return str(error)
    return ""


def _models_here(config: Config, *, stage: bool) -> tuple[Config, str]:
    """The configuration with the local folders of its models, and "". If one is not here: as it is, and which one."""
    try:
        return with_local_models(config, names_in("stage" if stage else "round"), download=False), ""
    except UsageError as error:
        return config, str(error)


def cancel(run: RunFolder) -> list[str]:
    """Cancel all jobs of the run; returns their numbers.

    Raises SophiaError when Slurm does not answer, or when a `sophia submit` is running: its next jobs would be missed.
    """
    with folder_lock(run.slurm.lock_file, named=False):
        ids = [job.id for job in slurm.queue(run_uid(run.path)) if job.state in slurm.LIVE]
        slurm.cancel(ids)
    return ids


def check_scripts(config: Config, *, stage: bool = False) -> None:
    """Raise UsageError if a file is missing in the folder of .sbatch files."""
    folder = config.cluster.scripts
    wanted = wanted_phases(config, "stage" if stage else "round")
    names = dict.fromkeys(["job.sh", *(phase.script_name for phase in wanted)])
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"{folder}: no {', '.join(missing)} there (cluster.scripts); the files lie in slurm/ of the checkout"
        )


def snapshot(config: Config, run: RunFolder) -> Path:
    """Copy package, .sbatch files and env file into a folder named by their content; returns this folder."""
    package, scripts = Path(sophia_mcore.__file__).parent, config.cluster.scripts
    environment = config.cluster.env_file.read_text().rstrip("\n")
    environment += f"\n# added by sophia submit\nMAX_RESTARTS={config.cluster.max_restarts}\n"
    files = {f"sophia_mcore/{path.relative_to(package)}": path for path in sorted(package.rglob("*")) if _wanted(path)}
    files |= {path.name: path for path in [*sorted(scripts.glob("*.sbatch")), scripts / "job.sh"]}
    digest = hashlib.sha256(environment.encode())
    for name, path in files.items():
        digest.update(f"\0{name}\0".encode() + path.read_bytes())
    target = run.slurm.code(digest.hexdigest())
    if target.is_dir():
        return target
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        for name, path in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)
        write_text(temporary / "cluster.env", environment)
        os.rename(temporary, target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise SophiaError(f"{target}: the code cannot be copied there ({error.strerror})") from None
    return target


def _wanted(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


@contextmanager
def no_jobs_alive(run: RunFolder) -> Iterator[str]:
    """Hold the lock of submissions, in a folder without jobs that are still alive; yields the run's uid.

    Raises UsageError if there are such jobs, SophiaError when another submission is running or Slurm does not answer.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    with folder_lock(run.slurm.lock_file):
        uid = run_uid(run.path)
        _refuse_if_alive(run, uid)
        yield uid


def _refuse_if_alive(run: RunFolder, uid: str) -> None:
    jobs = slurm.queue(uid)
    alive = [job for job in jobs if job.is_active]
    if alive:
        names = sorted({f"{job.id.partition('_')[0]} ({job.key[0]}, {job.state.lower()})" for job in alive})
        raise UsageError(
            f"{run.path} is running as {len(names)} Slurm jobs: {', '.join(names[:4])}"
            f"{' ...' if len(names) > 4 else ''}; see 'sophia status', or end them with 'sophia cancel'"
        )
    slurm.cancel([job.id for job in jobs if job.state in slurm.LIVE])  # these wait for a job that can no longer succeed


def _submit(
    run: RunFolder, jobs: list[Job], command_of: Callable[[Job, dict[Key, str]], list[str]], rounds: int, code: Path
) -> Submission:
    ids: dict[Key, str] = {}
    commands = []
    try:
        for job in jobs:
            commands.append(command_of(job, ids))
            ids[job.key] = slurm.sbatch(commands[-1], job.name)
    except SophiaError:
        slurm.cancel(list(ids.values()))
        raise
    record: dict[str, Any] = {
        "time": round(time.time(), 3),
        "rounds": rounds,
        "code": code.name,
        "jobs": [{"phase": job.phase, "round": job.round, "id": ids[job.key]} for job in jobs],
        "commands": shell_lines(commands).splitlines(),
    }
    if jobs:
        write_json(run.slurm.submission_file, record)
    return Submission(jobs, ids, commands)


def read_submission(run: RunFolder) -> dict[str, Any]:
    """The record of the run's last submission; {} if there is none."""
    return json_or_empty(run.slurm.submission_file)

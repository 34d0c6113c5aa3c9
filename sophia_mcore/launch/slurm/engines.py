"""`sophia submit --rl --engines N`: submits further engines for an on-policy stage that waits or runs.

Each element of the job array is one engine. It finds its work in the run folder and may end at any time: other engines
take over its units.
"""

from __future__ import annotations

from pathlib import Path

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.phases import RL
from sophia_mcore.launch.slurm import commands as slurm
from sophia_mcore.launch.slurm.jobs import Site, comment, early_signal, log_option, read_site
from sophia_mcore.launch.slurm.submit import read_submission, site_or_example
from sophia_mcore.rl.copies import copies_versions
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import run_uid

NAME = "rl-engines"
SCRIPT = "rl_engines.sbatch"


def submit_engines(config: Config, count: int) -> str:
    """Submit an array of ``count`` engines; returns its job number.

    Raises UsageError when no on-policy stage of this run waits or runs, when the env file is wrong, or when Slurm
    refuses the job. Raises SophiaError when Slurm does not answer.
    """
    run = RunFolder(config.run.folder)
    command = engines_command(config, run, read_site(config.cluster.env_file), _uid_of_stage(run), count)
    return slurm.sbatch(command, NAME)


def dry_engines(config: Config, count: int) -> tuple[list[str], tuple[str, ...]]:
    """The command line that `submit_engines` would run, and notes. Submits nothing and writes nothing.

    Before the stage is submitted, the scripts of the configuration stand for the snapshot.
    """
    run = RunFolder(config.run.folder)
    site, notes = site_or_example(config)
    scripts = None if read_submission(run) else config.cluster.scripts
    command = engines_command(config, run, site, "dry", count, scripts)
    try:
        _uid_of_stage(run)
    except SophiaError as error:
        notes += (f"submit itself would end with: {error}",)
    return command, notes


def _uid_of_stage(run: RunFolder) -> str:
    uid = run_uid(run.path) if run.path.is_dir() else ""
    if not uid or not any(job.is_active and job.key[0] == RL.name for job in slurm.queue(uid)):
        raise UsageError(f"no on-policy stage of {run.path} waits or runs: `sophia submit CONFIG --rl` submits one")
    return uid


def engines_command(
    config: Config, run: RunFolder, site: Site, uid: str, count: int, scripts: Path | None = None
) -> list[str]:
    """The sbatch command line. ``scripts``: folder of the job scripts; None: the stage's snapshot of the code."""
    folder, engine = run.path.absolute(), config.on_policy.engine
    if config.on_policy.versions == "memory" and not copies_versions(config):
        raise UsageError(
            "rl.versions = 'memory': the stage's one machine has the versions in its memory, where engines on others "
            "do not find them; use 'run'"
        )
    scripts = (scripts or run.slurm.path / str(read_submission(run).get("code", ""))).absolute()
    options = site.options("all", "gpu")
    if site.gpus_by:
        options.append(f"{site.gpus_by}{engine.gpus}")
    options += site.options("rl_engines")
    script = scripts / SCRIPT
    if not script.is_file():
        raise UsageError(f"{script}: no such file; {SCRIPT} was not there when the stage was submitted")
    options += early_signal(options, script.read_text())
    return [
        *("sbatch", "--parsable", f"--job-name={NAME}", f"--comment={comment(uid, (NAME, 0))}"),
        *(log_option(run, array=True), f"--array=0-{count - 1}"),
        *(*options, str(script), str(folder), "0", str(scripts)),
    ]

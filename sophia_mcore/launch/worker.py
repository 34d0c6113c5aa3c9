"""Runs a phase as a process in the phase's environment: the one entry point for local runs and for Slurm.

    python -m sophia_mcore.launch.worker PHASE RUN/config.toml --round R [--slurm]

Any number of workers may share the work units of a phase. Each may be killed and started again. ``--slurm`` adds what
a task of a Slurm job needs (``launch.slurm.task``): a check of its node, a record of the attempt, handling of signals,
and the exit codes by which job.sh decides whether to requeue the job. What a phase does is its row's ``work``, here and
there; where each node of a job does its part, ``on_node``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sophia_mcore.config import load_config
from sophia_mcore.errors import UsageError, run_command
from sophia_mcore.launch import phases
from sophia_mcore.launch.phases import phase_named
from sophia_mcore.phase import Phase
from sophia_mcore.progress import Progress, worker_progress
from sophia_mcore.store.layout import Round, RunFolder


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code of ``errors.run_command``, or with ``--slurm`` of ``launch.slurm.task``."""
    parser = argparse.ArgumentParser(prog="sophia_mcore.launch.worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("phase", choices=[phase.name for phase in phases.PHASES])
    parser.add_argument("config", type=Path, help="RUN/config.toml")
    parser.add_argument("--round", type=int, required=True, dest="round_index")
    parser.add_argument("--slurm", action="store_true", help="this is a task of a Slurm job")
    parser.add_argument("--progress-fd", type=int, default=None, help="pipe of the parent process for progress events")
    options = parser.parse_args(arguments)
    phase = phase_named(options.phase)
    if options.slurm:
        from sophia_mcore.launch.slurm.task import run_task

        return run_task(phase, options.config, options.round_index)
    progress = worker_progress(options.progress_fd)
    return run_command(
        f"{phase.name} of round {options.round_index}",
        lambda: _work(phase, options.config, options.round_index, progress),
    )


def _work(phase: Phase, config_file: Path, round_index: int, progress: Progress) -> None:
    if phase.ranks is not None:
        raise UsageError(f"{phase.name} runs on ranks: start {phase.ranks.module} with torchrun, or use `sophia run`")
    assert phase.work is not None, f"phase {phase.name}: neither work nor ranks"
    phase.work(Round(load_config(config_file), RunFolder(config_file.parent), round_index), progress)


if __name__ == "__main__":
    sys.exit(main())

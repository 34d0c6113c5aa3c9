"""One task of a phase under Slurm: what every slurm/*.sbatch starts, in the environment of its phase.

    python -m sophia_mcore.launch.slurm.task PHASE RUN/config.toml --round R

Checks the node, then the phase's inputs, then works. USR1 and TERM make it put its work down: a rollout gives its unit
back, training saves. Exit codes: 0 done, 1 failed, 2 bad usage, 75 stopped by a signal, 76 unhealthy node; job.sh
requeues the job after the last two.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError, run_command
from sophia_mcore.launch.phases import PHASES, evaluated_models
from sophia_mcore.launch.resources import gpus_per_task, processes_per_node, training_nodes
from sophia_mcore.launch.slurm import health
from sophia_mcore.launch.slurm.attempts import SlurmTask, begin_attempt, end_attempt, note_failed
from sophia_mcore.launch.state import check_inputs, state_of
from sophia_mcore.progress import LineProgress
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.lock import folder_lock

EXIT_STOPPED = 75


class Stop:
    """Whether USR1 or TERM has come. ``interrupts``: it also raises KeyboardInterrupt in the main thread, once."""

    def __init__(self, *, interrupts: bool) -> None:
        self.asked = False
        self._interrupts = interrupts
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        first, self.asked = not self.asked, True
        if first and self._interrupts:
            raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="sophia_mcore.launch.slurm.task", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("phase", choices=list(PHASES))
    parser.add_argument("config", type=Path, help="RUN/config.toml")
    parser.add_argument("--round", type=int, required=True, dest="round_index")
    options = parser.parse_args(arguments)
    stop = Stop(interrupts=options.phase != "train")
    run, task = RunFolder(options.config.parent), SlurmTask.of(os.environ)
    outcome: list[str] = []
    attempt = None

    def work() -> None:
        nonlocal attempt
        config = load_config(options.config)
        if task.node_index == 0:
            attempt = begin_attempt(run, options.phase, options.round_index, task)
        try:
            with folder_lock(run.lock_file, shared=True):
                do(config, run, options.phase, options.round_index, task, stop)
        except SophiaError as error:
            outcome.append(str(error))
            raise
        except Exception as error:
            outcome.append(f"{type(error).__name__}: {error}")
            raise

    try:
        code = run_command(f"{options.phase} on {task.node}", work)
    except KeyboardInterrupt:  # the signal came while the work was being put down
        code = 130
    if stop.asked and code in (130, 143):
        code = EXIT_STOPPED
    if code in (1, 2):
        note_failed(run, task)
    if attempt is not None:
        with suppress(SophiaError):  # a full disk, which the outcome has named already
            end_attempt(run, attempt, code, outcome[0] if outcome else "")
    return code


def do(config: Config, run: RunFolder, phase: str, round_index: int, task: SlurmTask, stop: Stop) -> None:
    """Check and work. Raises SophiaError; Unhealthy after noting the node down for exclusion."""
    if phase not in ("questions", "report") and state_of(config, run, phase, round_index).finished:
        return
    cluster = config.cluster
    try:
        health.check_node(run, task, gpus=gpus_per_task(config, phase), canary_seconds=cluster.canary_seconds)
        check_inputs(config, run, phase, round_index)
        _WORK[phase](config, run, round_index, task, stop)
    except health.Unhealthy as error:
        health.exclude(run, task, [error.node or task.node], cluster.max_excluded_nodes)
        raise


def _questions(config: Config, run: RunFolder, round_index: int, task: SlurmTask, stop: Stop) -> None:
    from sophia_mcore.launch.phases import Context, prepare
    from sophia_mcore.launch.terminal import TerminalProgress

    with TerminalProgress() as progress:
        prepare(Context(config, run, progress), round_index)


def _rollout(stage: str) -> Callable[[Config, RunFolder, int, SlurmTask, Stop], None]:
    def work(config: Config, run: RunFolder, round_index: int, task: SlurmTask, stop: Stop) -> None:
        from sophia_mcore.generate import worker

        worker.work(run.config_file, round_index, stage, LineProgress(), config.cluster.unit_attempts)

    return work


def _score(config: Config, run: RunFolder, round_index: int, task: SlurmTask, stop: Stop) -> None:
    from sophia_mcore.score.phase import score_round

    score_round(Round(config, run, round_index, config.cluster.unit_attempts), LineProgress())


def _train(config: Config, run: RunFolder, round_index: int, task: SlurmTask, stop: Stop) -> None:
    from sophia_mcore.launch.slurm.torchrun import train_on_node

    if task.node_count != training_nodes(config):
        raise UsageError(f"{task.node_count} nodes allocated, but [parallel] needs {training_nodes(config)}")
    if not train_on_node(config, run, round_index, task, processes_per_node(config), lambda: stop.asked):
        stop.asked = True
        raise KeyboardInterrupt


def _export(config: Config, run: RunFolder, round_index: int, task: SlurmTask, stop: Stop) -> None:
    from sophia_mcore.weights.worker import export_round

    export_round(config, run, round_index, LineProgress())


def _evaluate(config: Config, run: RunFolder, round_index: int, task: SlurmTask, stop: Stop) -> None:
    from sophia_mcore.evaluate import worker

    models = evaluated_models(config, run, round_index)
    worker.work(run.config_file, models, LineProgress(), config.cluster.unit_attempts)


def _report(config: Config, run: RunFolder, round_index: int, task: SlurmTask, stop: Stop) -> None:
    from sophia_mcore.report.build import write_report

    write_report(config, run)
    if config.track.enabled:
        from sophia_mcore.track.mlflow_upload import upload

        upload(run, config)


_WORK: dict[str, Callable[[Config, RunFolder, int, SlurmTask, Stop], None]] = {
    "questions": _questions,
    "captions": _rollout("captions"),
    "reasoning": _rollout("reasoning"),
    "score": _score,
    "train": _train,
    "export": _export,
    "evaluate": _evaluate,
    "report": _report,
}


if __name__ == "__main__":
    sys.exit(main())

"""Runs a phase as a task of a Slurm job (``launch.worker --slurm``).

The task checks the node, then the phase's inputs, then works. USR1 and TERM make it save and stop: a rollout releases
its unit, training writes a checkpoint. Exit codes: 0 done, 1 failed, 2 bad usage, 75 stopped by a signal, 76 unhealthy
node, 77 lost process. job.sh requeues the job after the last three.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from sophia_mcore.config import load_config
from sophia_mcore.errors import EXIT_INTERRUPTED, EXIT_STOPPED, SophiaError, UsageError, run_command
from sophia_mcore.launch import phases
from sophia_mcore.launch.slurm import health
from sophia_mcore.launch.slurm.attempts import begin_attempt, end_attempt, note_failed
from sophia_mcore.launch.state import check_inputs, state_of
from sophia_mcore.phase import Phase, SlurmTask
from sophia_mcore.progress import LineProgress
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.provenance.prepare import prepare
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.lock import folder_lock

_EXIT_TERMINATED = 128 + signal.SIGTERM


class Stop:
    """Handles USR1 and TERM: sets ``asked``. ``interrupts``: the first signal also raises KeyboardInterrupt."""

    def __init__(self, *, interrupts: bool) -> None:
        self.asked = False
        self._interrupts = interrupts
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        first, self.asked = not self.asked, True
        if first and self._interrupts:
            raise KeyboardInterrupt


def run_task(phase: Phase, config_file: Path, round_index: int) -> int:
    """Run the phase as a task of this job; returns the exit code."""
    stop = Stop(interrupts=phase.ranks is None)
    run, task = RunFolder(config_file.parent), SlurmTask.from_environment(os.environ)
    outcome: list[str] = []
    attempt = None

    def work() -> None:
        nonlocal attempt
        config = load_config(config_file)
        if task.node_index == 0:
            attempt = begin_attempt(run, phase.name, round_index, task)
        try:
            with folder_lock(run.lock_file, shared=True):
                _check_and_work(phase, Round(config, run, round_index, config.cluster.unit_attempts), task, stop)
        except SophiaError as error:
            outcome.append(str(error))
            raise
        except Exception as error:
            outcome.append(f"{type(error).__name__}: {error}")
            raise

    try:
        code = run_command(f"{phase.name} on {task.node}", work)
    except KeyboardInterrupt:  # the signal came while the task was stopping
        code = EXIT_INTERRUPTED
    if stop.asked and code in (EXIT_INTERRUPTED, _EXIT_TERMINATED):
        code = EXIT_STOPPED
    if code in (SophiaError.exit_code, UsageError.exit_code):
        note_failed(run, task)
    if attempt is not None:
        with suppress(SophiaError):  # the disk may be full; the outcome says so already
            end_attempt(run, attempt, code, outcome[0] if outcome else "")
    return code


def _check_and_work(phase: Phase, round: Round, task: SlurmTask, stop: Stop) -> None:
    """Check node and inputs, then work. Raises SophiaError; before it raises Unhealthy it excludes the node."""
    if not phase.again and state_of(phase, round).finished:
        return
    config, cluster = round.config, round.config.cluster
    try:
        gpus = phase.shape_for(config).gpus
        health.check_node(round.run, task, gpus=gpus, canary_seconds=cluster.canary_seconds)
        check_inputs(phase, round)
        if task.node_index == 0:
            prepare(Provenance(config, round.run, phases.PHASES), phase, round.index, _say)
        if phase.ranks is not None:
            _on_ranks(phase, round, task, stop)
        elif phase.on_node is not None:
            phase.on_node(round, task)
        else:
            assert phase.work is not None, f"phase {phase.name}: neither work nor ranks"
            phase.work(round, LineProgress())
    except health.Unhealthy as error:
        health.exclude(round.run, task, [error.node or task.node], cluster.max_excluded_nodes)
        raise
    if phase.uploads and config.track.enabled:
        from sophia_mcore.track.send import send

        send(round.run, config, phases.PHASES)


def _say(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _on_ranks(phase: Phase, round: Round, task: SlurmTask, stop: Stop) -> None:
    from sophia_mcore.launch.slurm.torchrun import run_on_node

    nodes = phase.shape_for(round.config).nodes or 1
    if task.node_count != nodes:
        raise UsageError(f"{task.node_count} nodes allocated, but [parallel] needs {nodes}")
    if not run_on_node(phase, round, task, lambda: stop.asked):
        stop.asked = True
        raise KeyboardInterrupt

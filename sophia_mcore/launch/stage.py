"""Supervises the processes of the on-policy stage on one node: a trainer and engines.

They exchange data only through files in RUN/rl. A process that was killed is started again and resumes from the files.
A process that fails by its own error ends the stage with this error.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sophia_mcore.config.schema import Config
from sophia_mcore.environments.terms import require_terms
from sophia_mcore.errors import EXIT_HELPER_DOWN, SophiaError, UsageError
from sophia_mcore.launch.children import Child, end_all
from sophia_mcore.launch.environments import SAVE_SECONDS, has_nvidia_driver, interpreter
from sophia_mcore.launch.process import signals_interrupt
from sophia_mcore.launch.readers import stage_has_ended
from sophia_mcore.launch.stage_settings import untrained_batches
from sophia_mcore.records import Question
from sophia_mcore.rl.copies import Copier, node_copies
from sophia_mcore.rl.devices import leave_node
from sophia_mcore.rl.questions import asked_questions, held_out_among
from sophia_mcore.store.failures import forget_failures
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import FAILED, RunFolder
from sophia_mcore.store.shards import read_shard

_LOOK_SECONDS = 0.2
_LAST_WORDS_SECONDS = 120.0  # time for engines to notice the end of the stage and leave
_SILENT_SECONDS = 10.0  # added to 1.5 x rl.stall_seconds, the time after which a hung engine ends itself if it can
TRAINER = "sophia_mcore.train.on_policy.worker"
ENGINE = "sophia_mcore.generate.rollouts"

Follow = Callable[[IO[str]], None]


@dataclass(frozen=True, kw_only=True)
class Node:
    """The processes of one node.

    ``torchrun``: arguments that join its ranks with the ranks of other nodes; None: the node does not train.
    ``engines``: number of engines. ``trainer_python``, ``engine_python``: commands that start Python.
    """

    torchrun: Sequence[str] | None
    engines: int
    trainer_python: Sequence[str]
    engine_python: Sequence[str]
    restarts_trainer: bool = True  # False: a lost trainer ends this node's task, and Slurm requeues the job


def this_machine(config: Config, *, replay: bool = False) -> Node:
    """This machine as the only node: it trains and, without ``replay``, runs all engines."""
    ranks = ("--standalone", f"--nproc-per-node={config.parallel.world_size}")
    return Node(
        torchrun=ranks,
        engines=0 if replay else config.on_policy.engines,
        trainer_python=(interpreter(config.environments.trainer),),
        engine_python=(interpreter(config.environments.rollout),),
    )


def supervise(
    config: Config,
    run: RunFolder,
    node: Node,
    *,
    replay: bool = False,
    follow: Follow | None = None,
    trainer: Sequence[str] = ("-m", TRAINER),
    engine: Sequence[str] = ("-m", ENGINE),
    signals: bool = True,
    copies: Path | None = None,
) -> None:
    """Run the node's processes until the stage ends. ``copies``: see ``rl.copies.node_copies``.

    KeyboardInterrupt, TERM and USR1 make trainer and engines save and stop. ``signals`` False: the caller turns TERM
    and USR1 into KeyboardInterrupt. Raises SophiaError or UsageError with the error of the process that failed. Raises
    LostTrainerError when the trainer was lost and is not restarted here.
    """
    engines = [_engine(config, run, index, node, engine) for index in range(node.engines)]
    trains = [_trainer(config, run, node, replay=replay, follow=follow, command=trainer)] if node.torchrun else []
    if trains:
        (run.rl.train / FAILED).unlink(missing_ok=True)  # left by an earlier attempt
    everybody = [*trains, *engines]
    in_memory = node_copies(config, run, copies) if engines else None
    with nullcontext() if in_memory is None else Copier(in_memory):
        try:
            with signals_interrupt() if signals else nullcontext():
                for child in everybody:
                    child.start()
                while not stage_has_ended(config, run):
                    for child in trains:
                        _watch_trainer(child, run, may_restart=node.restarts_trainer)
                    for child in engines:
                        _watch_engine(child)
                    time.sleep(_LOOK_SECONDS)
                _wait_for(everybody)
        finally:
            end_all(everybody)
    leave_node(run)


class LostTrainerError(SophiaError):
    """The trainer was killed or lost a rank. Starting it again may succeed."""


def _trainer(
    config: Config, run: RunFolder, node: Node, *, replay: bool, follow: Follow | None, command: Sequence[str]
) -> Child:
    assert node.torchrun is not None
    threads = config.train.threads_per_process
    environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    if node.engines and config.on_policy.placement == "separate" and has_nvidia_driver():
        environment |= _devices(0, config.parallel.processes_per_node or config.parallel.world_size)
    return Child(
        name="trainer",
        arguments=[
            *node.trainer_python,
            *("-m", "torch.distributed.run", *node.torchrun, f"--shutdown-timeout={SAVE_SECONDS}"),
            *(*command, str(run.config_file), *(["--replay"] if replay else [])),
        ],
        log_file=run.logs / f"rl-trainer{_log_suffix(node)}.log",
        environment=environment,
        max_restarts=config.cluster.max_restarts,
        patience_seconds=SAVE_SECONDS + 10,
        follow=follow,
    )


def _engine(config: Config, run: RunFolder, index: int, node: Node, command: Sequence[str]) -> Child:
    rl = config.on_policy
    environment: dict[str, str] = {}
    if has_nvidia_driver():
        wanted = rl.engine.gpus
        trains_apart = node.torchrun is not None and rl.placement == "separate"
        first = (config.parallel.processes_per_node or config.parallel.world_size) if trains_apart else 0
        environment = _devices(first + index * wanted, wanted)
    return Child(
        name=f"engine {index}",
        arguments=[*node.engine_python, *command, str(run.config_file)],
        log_file=run.logs / f"rl-engine{_log_suffix(node)}-{index}.log",
        environment=environment,
        max_restarts=config.cluster.max_restarts,
        patience_seconds=60.0,
        alive_file=lambda pid: run.rl.engine_alive_file(socket.gethostname(), pid),
        silent_seconds=1.5 * rl.stall_seconds + _SILENT_SECONDS,
    )


def _log_suffix(node: Node) -> str:
    """Part of the names of logs: under Slurm, with several nodes, the name of the host."""
    return "" if node.restarts_trainer else f"-{socket.gethostname()}"


def _devices(first: int, count: int) -> dict[str, str]:
    """Environment that shows a process ``count`` of the GPUs that this process may use, from number ``first`` on."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = allowed.split(",") if allowed else [str(index) for index in range(first + count)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[first : first + count])}


def _watch_trainer(child: Child, run: RunFolder, *, may_restart: bool) -> None:
    code = child.poll()
    if code is None or run.rl.summary_file.is_file():
        return
    failure = _own_failure(run)
    if failure or child.last_error():
        raise _error(code, failure or child.why())
    if not may_restart:
        raise LostTrainerError(f"the trainer {child.why()} (log: {child.log_file})")
    if not child.may_restart():
        raise SophiaError(f"the trainer was lost {child.restarts + 1} times; it {child.why()} (log: {child.log_file})")
    child.restart()


def _watch_engine(child: Child) -> None:
    """Restart the engine if it has failed. Its unfinished work units go to other engines or to the new one."""
    code = child.poll()
    if code is None or code == 0:
        return
    if code == UsageError.exit_code:
        raise UsageError(child.why())
    if code == EXIT_HELPER_DOWN:  # its client has tried again already
        raise SophiaError(child.why())
    if not child.may_restart():
        raise SophiaError(f"{child.name} ended {child.restarts + 1} times; it {child.why()} (log: {child.log_file})")
    child.restart()


def _own_failure(run: RunFolder) -> str:
    """The error of a rank that failed by its own error; "" if none did."""
    failure = json_or_empty(run.rl.train / FAILED)
    return f"rl: rank {failure['rank']}: {failure['error']}" if failure else ""


def _error(code: int, words: str) -> SophiaError:
    return UsageError(words) if code == UsageError.exit_code else SophiaError(words)


def _wait_for(children: Sequence[Child]) -> None:
    """Wait, for a limited time, until the processes have noticed the end of the stage and have ended."""
    until = time.monotonic() + _LAST_WORDS_SECONDS
    while time.monotonic() < until and any(child.poll() is None for child in children):
        time.sleep(_LOOK_SECONDS)


def make_ready(config: Config, run: RunFolder, *, first_node: bool = True) -> None:
    """Check the questions, and remove what was made with other settings: a choice of questions, an earlier end.

    A stage that ended with fewer batches than are configured now goes on without its summary. Raises UsageError if a
    batch would need more questions than there are, if the reward has no term for one, or if held-out ones are trained
    on.
    """
    found = read_shard(asked_questions(config, run), Question)
    require_terms(config.reward_terms, found)
    size = config.on_policy.questions_per_batch
    if size > len(found):
        raise UsageError(f"rl.questions_per_batch = {size} is more than the {len(found)} questions there are to ask")
    for line in held_out_among(config, run):
        if first_node:
            print(f"warning: {line}", file=sys.stderr)
    if first_node and not config.on_policy.selects:
        for path in (run.rl.select_file, run.rl.questions_file):
            path.unlink(missing_ok=True)
    if first_node and not stage_has_ended(config, run):
        run.rl.summary_file.unlink(missing_ok=True)
        shutil.rmtree(run.rl.weighed, ignore_errors=True)  # of the batches that there were
        _try_lost_again(config, run)


def _try_lost_again(config: Config, run: RunFolder) -> None:
    """Let units that were given up be asked again where nothing is trained on their batch yet.

    Whatever has stopped the stage may have been mended since: a helper, a disk, a function.
    """
    from sophia_mcore.train.on_policy.batch import TAKEN
    from sophia_mcore.train.on_policy.own import LEARNED

    for folder in untrained_batches(config, run):
        forget_failures(folder)
        if json_or_empty(folder / TAKEN).get("lost"):
            for name in (LEARNED, TAKEN):
                (folder / name).unlink(missing_ok=True)

"""The processes of the on-policy stage on one node: trainer and engines, started, watched and ended.

They are joined by RUN/rl alone. Whatever dies is started again and finds its place from the files; what fails by itself
ends the stage with its own words.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import IO

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.children import Child, end_all
from sophia_mcore.launch.environments import SAVE_SECONDS, has_nvidia_driver, interpreter
from sophia_mcore.launch.process import signals_interrupt
from sophia_mcore.launch.readers import stage_has_ended
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import FAILED, RunFolder

_LOOK_SECONDS = 0.2
_LAST_WORDS_SECONDS = 120.0  # that engines have to see the end of the stage by themselves
_SILENT_SECONDS = 10.0  # beyond 1.5 x rl.stall_seconds: by then a hung engine that could has ended itself
TRAINER = "sophia_mcore.train.rl_worker"
ENGINE = "sophia_mcore.generate.rollouts"

Follow = Callable[[IO[str]], None]


@dataclass(frozen=True, kw_only=True)
class Node:
    """What one node does. ``torchrun``: arguments that join its ranks with those of others; None: it does not train."""

    torchrun: Sequence[str] | None
    engines: int
    trainer_python: Sequence[str]
    engine_python: Sequence[str]
    restarts_trainer: bool = True  # False: a lost trainer ends this node's task, and the job starts all again


def this_machine(config: Config, *, replay: bool = False) -> Node:
    """A node that does everything."""
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
) -> None:
    """Run the node's part of the stage to its end.

    KeyboardInterrupt, TERM and USR1 make trainer and engines put their work down (``signals`` False: the caller turns
    the latter two into the first). Raises SophiaError or UsageError in the words of what failed; LostTrainerError when
    the trainer was lost and is not started again here.
    """
    engines = [_engine(config, run, index, node, engine) for index in range(node.engines)]
    trains = [_trainer(config, run, node, replay=replay, follow=follow, command=trainer)] if node.torchrun else []
    if trains:
        (run.rl.train / FAILED).unlink(missing_ok=True)  # of an earlier attempt
    everybody = [*trains, *engines]
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


class LostTrainerError(SophiaError):
    """The trainer was killed, or lost a rank; to start again may succeed."""


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
        log_file=run.logs / f"rl-trainer{_of_node(node)}.log",
        environment=environment,
        max_restarts=config.cluster.max_restarts,
        patience_seconds=SAVE_SECONDS + 10,
        follow=follow,
    )


def _engine(config: Config, run: RunFolder, index: int, node: Node, command: Sequence[str]) -> Child:
    rl = config.on_policy
    environment: dict[str, str] = {}
    if has_nvidia_driver():
        wanted = rl.engine.tensor_parallel if rl.engine.kind == "vllm" else 1
        trains_apart = node.torchrun is not None and rl.placement == "separate"
        first = (config.parallel.processes_per_node or config.parallel.world_size) if trains_apart else 0
        environment = _devices(first + index * wanted, wanted)
    return Child(
        name=f"engine {index}",
        arguments=[*node.engine_python, *command, str(run.config_file)],
        log_file=run.logs / f"rl-engine{_of_node(node)}-{index}.log",
        environment=environment,
        max_restarts=config.cluster.max_restarts,
        patience_seconds=60.0,
        alive_file=lambda pid: run.rl.engines / f"{socket.gethostname()}-{pid}.alive",
        silent_seconds=1.5 * rl.stall_seconds + _SILENT_SECONDS,
    )


def _of_node(node: Node) -> str:
    """What tells the logs of several nodes apart."""
    return "" if node.restarts_trainer else f"-{socket.gethostname()}"


def _devices(first: int, count: int) -> dict[str, str]:
    """Which GPUs a process sees: ``count`` of those that this process may use."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = allowed.split(",") if allowed else [str(index) for index in range(first + count)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[first : first + count])}


def _watch_trainer(child: Child, run: RunFolder, *, may_restart: bool) -> None:
    code = child.poll()
    if code is None or run.rl.summary_file.is_file():
        return
    failure = _own_failure(run)
    if failure or child.said():
        raise _error(code, failure or child.why())
    if not may_restart:
        raise LostTrainerError(f"the trainer {child.why()} (log: {child.log_file})")
    if not child.may_restart():
        raise SophiaError(f"the trainer was lost {child.restarts + 1} times; it {child.why()} (log: {child.log_file})")
    child.restart()


def _watch_engine(child: Child) -> None:
    """Engines are replaced: what they had in hand is done by others, or by their successors."""
    code = child.poll()
    if code is None or code == 0:
        return
    if code == UsageError.exit_code:
        raise UsageError(child.why())
    if not child.may_restart():
        raise SophiaError(f"{child.name} ended {child.restarts + 1} times; it {child.why()} (log: {child.log_file})")
    child.restart()


def _own_failure(run: RunFolder) -> str:
    """What a rank said that failed by itself; "" when none did."""
    failure = json_or_empty(run.rl.train / FAILED)
    return f"rl: rank {failure['rank']}: {failure['error']}" if failure else ""


def _error(code: int, words: str) -> SophiaError:
    return UsageError(words) if code == UsageError.exit_code else SophiaError(words)


def _wait_for(children: Sequence[Child]) -> None:
    """The stage has ended: everybody sees it and leaves."""
    until = time.monotonic() + _LAST_WORDS_SECONDS
    while time.monotonic() < until and any(child.poll() is None for child in children):
        time.sleep(_LOOK_SECONDS)


def remove_summary_of_fewer_batches(config: Config, run: RunFolder) -> None:
    """A stage that goes on beyond the batches that it was first given has not ended after all."""
    if run.rl.summary_file.is_file() and not stage_has_ended(config, run):
        run.rl.summary_file.unlink()

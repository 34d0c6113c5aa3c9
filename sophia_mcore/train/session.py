"""The frame around the training loop on one rank: backend, process groups, signals, and leaving in good order."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from sophia_mcore.config.schema import Config
from sophia_mcore.parallel import backend as backends
from sophia_mcore.parallel import groups as layouts
from sophia_mcore.parallel import network
from sophia_mcore.progress import Progress
from sophia_mcore.store.layout import Round
from sophia_mcore.train.checkpoint import on_rank_zero
from sophia_mcore.train.fp8.gate import require_check
from sophia_mcore.train.job import build_job
from sophia_mcore.train.loop import train

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def train_round(round_: Round, progress: Progress) -> bool:
    """Train the round on this rank; returns False when a signal stopped it (state saved), True when it is finished.

    Raises SophiaError when the configuration asks for FP8 that `sophia fp8-check` has not admitted, UsageError when
    there is nothing here to run it with.
    """
    config = round_.config
    with stop_signals() as asked, joined(config) as (groups, backend):
        backend.check_fp8(config.fp8.recipe, config.fp8.backend)
        on_rank_zero(lambda: require_check(config, round_.run), "FP8 is not admitted")
        job = build_job(round_, groups, backend)
        gc.collect()
        gc.freeze()  # the model and the libraries stay: later collections need not visit them
        finished = train(job, progress, asked)
        dist.barrier()
    return finished


@contextmanager
def joined(config: Config) -> Iterator[tuple[layouts.Groups, backends.Backend]]:
    """This rank's backend and process groups, for as long as the context is open."""
    backend = backends.select(int(os.environ.get("LOCAL_RANK", 0)))
    if backend.kind == "cpu":
        torch.set_num_threads(threads(config, int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    with backend.adapt():
        _join(config, backend)
        cluster = config.cluster
        network.check_network(backend.device, cluster.join_seconds, cluster.allreduce_floor_gb_per_second)
        groups = layouts.initialize(
            config.parallel, backend, config.train.distributed_timeout_seconds, config.run.seed, gloo_copies=False
        )
        try:
            yield groups, backend
        finally:
            layouts.shutdown()


def threads(config: Config, local_ranks: int) -> int:
    """Threads of one rank on a CPU: the configured number, or an equal share of the cores."""
    return config.train.threads_per_process or max(1, len(os.sched_getaffinity(0)) // local_ranks)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """While open, SIGTERM and SIGUSR1 only make the yielded function return True; the loop saves and leaves."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _join(config: Config, backend: backends.Backend) -> None:
    """torchrun's process group, or a group of this process alone."""
    timeout = timedelta(seconds=config.train.distributed_timeout_seconds)
    if dist.is_torchelastic_launched():
        dist.init_process_group(backend.distributed, timeout=timeout)
    elif not dist.is_initialized():
        dist.init_process_group(backend.distributed, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)

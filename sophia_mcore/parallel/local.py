"""Runs a function on several gloo ranks on this machine, for checks and tests on the CPU. Training uses torchrun.

The ranks are forked, so that torch and megatron-core are imported only once.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sophia_mcore.config.schema import Parallel
from sophia_mcore.errors import SophiaError
from sophia_mcore.parallel import backend as backends
from sophia_mcore.parallel import groups as layouts


class RankError(RuntimeError):
    """A rank failed. The message is its traceback."""


def run(work: Callable[..., Any], world_size: int, *args: Any, timeout_seconds: float = 120.0) -> list[Any]:
    """Call `work(*args)` on `world_size` forked gloo ranks; returns their results in rank order.

    `torch.distributed` is initialised on each rank. The first rank that fails ends the others. Its `SophiaError` is
    raised unchanged, any other exception as a `RankError` with the traceback.
    """
    context = multiprocessing.get_context("fork")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="gloo-") as folder:
        ends, processes = [], []
        for rank in range(world_size):
            mine, theirs = context.Pipe(duplex=False)
            arguments = (theirs, Path(folder) / "store", rank, world_size, work, args)
            process = context.Process(target=_rank, args=arguments)
            process.start()
            theirs.close()
            ends.append(mine)
            processes.append(process)
        try:
            return _collect(ends, time.monotonic() + timeout_seconds)
        finally:
            for process in processes:
                process.kill()
                process.join()


def run_layout(
    work: Callable[..., Any], parallel: Parallel, *args: Any, data: int = 1, timeout: float = 120.0
) -> list[Any]:
    """Call `work(groups, backend, *args)` on every rank of a layout, inside `Backend.adapt`; returns like `run`."""
    return run(_with_groups, parallel.model_ranks * data, work, parallel, args, timeout_seconds=timeout)


def _with_groups(work: Callable[..., Any], parallel: Parallel, args: tuple[Any, ...]) -> Any:
    backend = backends.select(kind="cpu")
    with backend.adapt():
        groups = layouts.initialize(parallel, backend, timeout_seconds=60, gloo_copies=False)
        return work(groups, backend, *args)


def _rank(end: Connection, store: Path, rank: int, world_size: int, work: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # what was there before the fork is no garbage of this rank; looking through it copies its pages
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
        )
        answer = (True, work(*args))
    except SophiaError as error:
        answer = (False, error)
    except BaseException:
        answer = (False, RankError(f"rank {rank}:\n{traceback.format_exc()}"))
    buffer = io.BytesIO()
    torch.save(answer, buffer)
    end.send_bytes(buffer.getvalue())


def _collect(ends: list[Connection], deadline: float) -> list[Any]:
    answers: dict[int, Any] = {}
    while len(answers) < len(ends):
        missing = [end for rank, end in enumerate(ends) if rank not in answers]
        ready = wait(missing, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            late = [rank for rank in range(len(ends)) if rank not in answers]
            raise RankError(f"ranks {late} did not answer in time")
        for end in ready:
            rank = ends.index(end)  # type: ignore[arg-type]
            try:
                done, answers[rank] = torch.load(io.BytesIO(ends[rank].recv_bytes()), weights_only=False)
            except EOFError:
                raise RankError(f"rank {rank} died without an answer") from None
            if not done:
                raise answers[rank]
    return [answers[rank] for rank in range(len(ends))]

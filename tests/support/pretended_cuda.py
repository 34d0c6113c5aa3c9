"""The backend that `parallel.backend.select` returns on a GPU, where there is none: torch.cuda answers as on an H100.

Tensors are CPU tensors, and nothing runs on a device. What this shows: the Python of the CUDA branch. What it cannot:
kernels, streams, NCCL, memory, speed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from sophia_mcore.parallel import backend as backends
from sophia_mcore.parallel import groups as groups_module
from sophia_mcore.parallel.backend import Backend
from sophia_mcore.parallel.cpu import adaptation

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3 (pretended)", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30,
    shared_memory_per_multiprocessor=233472, regs_per_multiprocessor=65536, warp_size=32,
    shared_memory_per_block_optin=232448, L2_cache_size=50 << 20,
)  # fmt: skip


class Stream:
    """A stream, or an event, on which nothing runs."""

    cuda_stream = 0
    device = torch.device("cuda", 0)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def record_event(self, *_: Any) -> Stream:
        return Stream()

    def query(self) -> bool:
        return True


_CUDA: dict[str, Any] = {
    "is_available": lambda: True,
    "is_initialized": lambda: False,
    "device_count": lambda: 1,
    "current_device": lambda: "cpu",  # a string: Transformer Engine compares it with "meta"
    "set_device": lambda *_: None,
    "get_device_capability": lambda *_: (9, 0),
    "get_device_properties": lambda *_: H100,
    "get_device_name": lambda *_: H100.name,
    "is_current_stream_capturing": lambda *_: False,
    "synchronize": lambda *_: None,
    "current_stream": lambda *_: Stream(),
    "default_stream": lambda *_: Stream(),
    "stream": lambda *_: contextlib.nullcontext(),
    "Stream": Stream,
    "Event": Stream,
    "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": lambda *_: None,
}


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """While open, torch.cuda looks as on an H100, and "cuda" in factories and `.to` means the CPU."""
    with adaptation(), contextlib.ExitStack() as stack:
        for name, value in _CUDA.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch.version, "cuda", torch.version.cuda or "13.0"))
        # torch's own optimizers ask it; a build for CUDA would look for the device
        stack.enter_context(mock.patch.object(torch.accelerator, "current_accelerator", lambda *_, **__: None))
        yield


def backend(**changes: Any) -> Backend:
    """What `select` returns on a GPU with Transformer Engine, on CPU tensors over gloo."""
    values: dict[str, Any] = {
        "kind": "cuda", "device": torch.device("cpu"), "distributed": "gloo", "transformer_engine": True,
        "fused_weight_gradient": False, "fused_kernels": True, "ordered_sends": True,
    }  # fmt: skip
    return Backend(**{**values, **changes})


@contextlib.contextmanager
def fake_world(rank: int, size: int) -> Iterator[None]:
    """`size` ranks of which only this one exists; collectives return at once and move nothing."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        groups_module.shutdown()


@contextlib.contextmanager
def selected(chosen: Backend) -> Iterator[None]:
    """While open, every session of this process runs on this backend. Enter it inside `pretended`.

    Files are written as on a CPU: torch's writer would look for CUDA streams.
    """
    from sophia_mcore.train import session

    build: Callable[..., Any] = session.build_job

    def build_job(*args: Any, **kwargs: Any) -> Any:
        job = build(*args, **kwargs)
        torch.cuda.is_available = lambda: False
        return job

    with (
        mock.patch.object(backends, "select", lambda *_, **__: chosen),
        mock.patch.object(session, "build_job", build_job),
    ):
        yield

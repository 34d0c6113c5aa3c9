"""What megatron-core needs in order to run where there is no CUDA: its tensors and random states go to the CPU.

Entered through `Backend.adapt`, never on a machine with CUDA. Nothing of torch or megatron-core stays changed after
the context is left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from megatron.core.tensor_parallel import random as mcore_random
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


def _is_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


class CudaToCpu(TorchFunctionMode):
    """Sends every tensor that is asked for on "cuda" to the CPU.

    `Tensor.type()` answers with the CUDA name: megatron-core's optimizer knows parameters by that name.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(args[0]).replace("torch.", "torch.cuda.", 1)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if func is torch.Tensor.to:
            args = tuple(CPU if _is_cuda(value) else value for value in args)
        return func(*args, **kwargs)


class CpuRandomStates:
    """megatron-core's tracker of named random states (its `CudaRNGStatesTracker`), on the CPU generator."""

    def __init__(self) -> None:
        self.reset()

    def is_initialized(self) -> bool:
        return bool(self.states_)

    def reset(self) -> None:
        self.states_: dict[str, torch.Tensor] = {}
        self.seeds_: set[int] = set()

    def get_states(self) -> dict[str, torch.Tensor]:
        return dict(self.states_)

    def set_states(self, states: dict[str, torch.Tensor]) -> None:
        self.states_ = dict(states)

    def add(self, name: str, seed: int) -> None:
        """Start the state `name` from `seed`; each name and each seed once."""
        if name in self.states_ or seed in self.seeds_:
            raise ValueError(f"random state {name!r} or seed {seed} already exists")
        self.seeds_.add(seed)
        self.states_[name] = torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
        """Draw from the state `name` inside the context."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(outside)


class Stream:
    """A no-op CUDA stream: the CPU runs in order."""

    def wait_event(self, event: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass


def _get_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(state)


@contextlib.contextmanager
def adaptation() -> Iterator[None]:
    """megatron-core on the CPU, for as long as the context is open."""
    with contextlib.ExitStack() as stack:
        patches = (
            (torch.cuda, "current_device", lambda: CPU),
            (torch.cuda, "synchronize", lambda *_: None),
            (torch.cuda, "current_stream", lambda *_: Stream()),
            (torch.cuda, "manual_seed", torch.manual_seed),
            (mcore_random, "_get_cuda_rng_state", _get_state),
            (mcore_random, "_set_cuda_rng_state", _set_state),
            (mcore_random, "_CUDA_RNG_STATE_TRACKER", CpuRandomStates()),
            (mcore_random, "_CUDA_RNG_STATE_TRACKER_INITIALIZED", True),
        )
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(CudaToCpu())
        yield

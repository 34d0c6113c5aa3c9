"""Makes megatron-core run without CUDA: its tensors and random states go to the CPU.

`Backend.adapt` enters this context, never on a machine with CUDA. All changes to torch and megatron-core are undone
when the context ends.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from megatron.core import optimizer as mcore_optimizer
from megatron.core import utils as mcore_utils
from megatron.core.optimizer import clip_grads, distrib_optimizer
from megatron.core.optimizer import optimizer as mcore_optimizers
from megatron.core.tensor_parallel import random as mcore_random

from sophia_mcore.parallel.pairs import Pairs

CPU = torch.device("cpu")
_FACTORIES = (
    "arange", "as_tensor", "asarray", "empty", "empty_like", "empty_strided", "eye", "full", "full_like", "linspace",
    "logspace", "normal", "ones", "ones_like", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like",
    "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros", "zeros_like",
)  # fmt: skip


def _is_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the CPU for its ``device`` "cuda", and without pinned memory."""

    @functools.wraps(function)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = CPU
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
        return function(*args, **kwargs)

    return on_cpu


def _moved_to_cpu(to: Callable[..., Any]) -> Callable[..., Any]:
    """`Tensor.to`, which takes the device at any place."""
    with_keywords = _on_cpu(to)

    @functools.wraps(to)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        return with_keywords(*(CPU if _is_cuda(value) else value for value in args), **kwargs)

    return on_cpu


def _cuda_named(kind: Callable[..., Any]) -> Callable[..., Any]:
    """`Tensor.type()` with the CUDA name, because megatron-core's optimizer recognises parameters by it."""

    @functools.wraps(kind)
    def named(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = kind(tensor, *args, **kwargs)
        return found if args or kwargs else found.replace("torch.", "torch.cuda.", 1)

    return named


def _tensors_on_cpu() -> list[tuple[Any, str, Any]]:
    """Replacements that create tensors on the CPU whenever device "cuda" is requested.

    A `TorchFunctionMode` would be shorter, but it takes an eighth of a small model's step: torch calls it for every
    operation and every attribute of a tensor.
    """
    methods = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
    return [
        *((torch, name, _on_cpu(getattr(torch, name))) for name in _FACTORIES),
        *((torch.Tensor, name, _on_cpu(getattr(torch.Tensor, name))) for name in methods),
        (torch.Tensor, "to", _moved_to_cpu(torch.Tensor.to)),
        (torch.Tensor, "type", _cuda_named(torch.Tensor.type)),
        (torch.Tensor, "cuda", lambda tensor, *_, **__: tensor),
        (torch.Tensor, "pin_memory", lambda tensor, *_, **__: tensor),
    ]


class CpuRandomStates:
    """Replaces megatron-core's tracker of named random states (`CudaRNGStatesTracker`); uses the CPU generator."""

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
        """Add the state `name` with `seed`. Raises ValueError if the name or the seed is used already."""
        if name in self.states_ or seed in self.seeds_:
            raise ValueError(f"random state {name!r} or seed {seed} already exists")
        self.seeds_.add(seed)
        self.states_[name] = torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
        """Inside the context, random numbers are drawn from the state `name`."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(outside)


class Stream:
    """A no-op in place of a CUDA stream, since the CPU runs everything in order."""

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
    """Context in which megatron-core runs on the CPU."""
    with torch.device("cpu"):
        torch.empty(0)  # torch lists the functions that `with torch.device` concerns at its first use: unpatched ones
    with contextlib.ExitStack() as stack:
        pairs = stack.enter_context(contextlib.closing(Pairs(dist.all_reduce)))
        patches = (
            (dist, "all_reduce", pairs.all_reduce),
            (torch.cuda, "current_device", lambda: CPU),
            (torch.cuda, "synchronize", lambda *_: None),
            (torch.cuda, "current_stream", lambda *_: Stream()),
            (torch.cuda, "manual_seed", torch.manual_seed),
            (mcore_random, "_get_cuda_rng_state", _get_state),
            (mcore_random, "_set_cuda_rng_state", _set_state),
            (mcore_random, "_CUDA_RNG_STATE_TRACKER", CpuRandomStates()),
            (mcore_random, "_CUDA_RNG_STATE_TRACKER_INITIALIZED", True),
        )
        for owner, name, value in (*patches, *_optimizer_parts(), *_uncompiled(), *_tensors_on_cpu()):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def _optimizer_parts() -> list[tuple[Any, str, Any]]:
    """(module, name, value) of megatron-core's optimizer to replace on the CPU.

    Gradient norm and scaling become megatron-core's own functions; with Transformer Engine installed it would use CUDA
    kernels. The fused optimizer counts as not installed, so that `train.optim` provides one. The names that
    `train.optim` sets are listed with their present values, so that they are restored too.
    """
    own = {
        "multi_tensor_applier": mcore_utils.local_multi_tensor_applier,
        "l2_norm_impl": mcore_utils.local_multi_tensor_l2_norm,
        "multi_tensor_scale_impl": mcore_utils.local_multi_tensor_scale,
        "multi_tensor_scale_tensor_impl": mcore_utils.local_multi_tensor_scale,  # megatron-core 0.19
    }
    set_by_us = ((mcore_optimizer, "Adam"), (distrib_optimizer, "Adam"), (distrib_optimizer, "HAVE_APEX_OR_TE"))
    return [
        *((owner, n, v) for owner in (clip_grads, mcore_optimizers) for n, v in own.items() if hasattr(owner, n)),
        (mcore_optimizer, "USING_PYTORCH_OPTIMIZER", True),
        (distrib_optimizer, "USING_APEX_OPTIMIZER", distrib_optimizer.USING_APEX_OPTIMIZER),
        *((owner, name, getattr(owner, name)) for owner, name in set_by_us),
    ]


def _uncompiled() -> list[tuple[Any, str, Any]]:
    """Methods of torch's optimizers without their decorator, which imports torch's compiler at the first call."""
    methods = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    return [(torch.optim.Optimizer, name, inspect.unwrap(getattr(torch.optim.Optimizer, name))) for name in methods]

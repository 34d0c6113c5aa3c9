"""The one switch between CUDA (NCCL, Transformer Engine, apex) and CPU (gloo, plain torch).

No other module makes this choice.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch

from sophia_mcore.errors import UsageError
from sophia_mcore.parallel.layout import fp8_refusal

_TE_REMEDY = "install what it needs (onnxscript, einops; docs/gpu.md) for this build of torch, or uninstall it"
_APEX_REMEDY = "build apex for this build of torch, or uninstall it: it is not required"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The device that the model runs on and the libraries that it uses.

    Attributes:
        device: device of parameters and batches.
        distributed: name for `torch.distributed.init_process_group`.
        transformer_engine: layers from Transformer Engine's spec; else megatron-core's local spec with torch parts.
        fused_weight_gradient: use apex's kernel that adds the weight gradient directly to the fp32 buffer.
        fused_kernels: megatron-core's compiled bias, activation and rotary kernels.
        ordered_sends: a tensor may be freed once its send was issued (CUDA streams keep the order, gloo does not).
    """

    kind: Literal["cpu", "cuda"]
    device: torch.device
    distributed: Literal["gloo", "nccl"]
    transformer_engine: bool
    fused_weight_gradient: bool
    fused_kernels: bool
    ordered_sends: bool

    def adapt(self) -> AbstractContextManager[None]:
        """Context in which megatron-core works on this backend. Enter it once, around everything. A no-op on CUDA."""
        if self.kind == "cuda":
            return contextlib.nullcontext()
        from sophia_mcore.parallel.cpu import adaptation

        return adaptation()

    def check_fp8(self, recipe: str, implementation: str = "transformer_engine") -> None:
        """Raise UsageError if FP8 would have no effect: megatron-core ignores it without Transformer Engine.

        `implementation`: value of fp8.backend. The emulation is used only if the setting asks for it.
        """
        if recipe == "none":
            return
        if implementation == "emulated":
            if self.transformer_engine:
                raise UsageError(
                    "fp8.backend = 'emulated', but Transformer Engine is installed: set it to 'transformer_engine'"
                )
            return
        if not self.transformer_engine:
            lacks = "a CUDA device" if self.kind == "cpu" else "Transformer Engine"
            raise fp8_refusal(recipe, lacks)

    def check_attention(self, dtype: str, context: int) -> None:
        """Raise UsageError if Transformer Engine has no attention kernel for this dtype and context parallelism."""
        if self.transformer_engine and dtype == "float32" and context > 1:
            raise UsageError(
                f"train.dtype = 'float32' with parallel.context = {context}: Transformer Engine has no such attention; "
                "set train.dtype = 'bfloat16' or parallel.context = 1"
            )


def select(local_rank: int = 0, kind: Literal["auto", "cpu", "cuda"] = "auto") -> Backend:
    """The backend of this process. `local_rank` (torchrun's LOCAL_RANK) chooses the CUDA device.

    Raises UsageError for "cuda" without a CUDA device, and for installed libraries that cannot be imported.
    """
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return Backend(
            kind="cpu",
            device=torch.device("cpu"),
            distributed="gloo",
            transformer_engine=False,
            fused_weight_gradient=False,
            fused_kernels=False,
            ordered_sends=False,
        )
    if not torch.cuda.is_available():
        raise UsageError("backend 'cuda' was asked for, but torch sees no CUDA device")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    transformer_engine = _usable("transformer_engine", "transformer_engine.pytorch", _TE_REMEDY)
    if not transformer_engine:
        _usable("apex", "amp_C", _APEX_REMEDY)  # megatron-core takes apex's optimizer then, which needs its kernels
    return Backend(
        kind="cuda",
        device=device,
        distributed="nccl",
        transformer_engine=transformer_engine,
        fused_weight_gradient=_usable("fused_weight_gradient_mlp_cuda", "fused_weight_gradient_mlp_cuda", _APEX_REMEDY),
        fused_kernels=True,
        ordered_sends=True,
    )


def check_parts() -> None:
    """Import Transformer Engine and apex if they are installed. Call this before megatron-core is imported.

    megatron-core imports them too, but fails with a traceback. This raises UsageError in one line if the import fails.
    Without CUDA this imports megatron-core without torch's compiler. Its fused functions are not used then
    (`Backend.fused_kernels`), and decorating them would take a third of the time of all imports.
    """
    _usable("transformer_engine", "transformer_engine.pytorch", _TE_REMEDY)
    _usable("apex", "apex", _APEX_REMEDY)
    if not torch.cuda.is_available():
        with mock.patch.object(torch, "compile", _not_compiled):
            importlib.import_module("megatron.core.jit")  # keeps the compiler as `jit_fuser`


def _not_compiled(function: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
    """In the place of `torch.compile`, as a decorator with or without arguments."""
    return _not_compiled if function is None else function


def _usable(package: str, module: str, remedy: str) -> bool:
    """Whether `package` is installed. If so, import its `module`; raises UsageError when the import fails."""
    if importlib.util.find_spec(package) is None:
        return False
    try:
        importlib.import_module(module)
    except Exception as error:  # a missing library or module, or a build for another torch
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{package} is installed, but cannot be imported ({lines[0]}): {remedy}") from error
    return True

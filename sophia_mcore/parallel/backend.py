"""The one switch between CUDA (NCCL, Transformer Engine, apex) and CPU (gloo, plain torch). Nothing else asks which."""

from __future__ import annotations

import contextlib
import importlib.util
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from sophia_mcore.errors import UsageError
from sophia_mcore.parallel.layout import fp8_refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Where the model runs and with which parts.

    Attributes:
        device: of parameters and batches.
        distributed: name for `torch.distributed.init_process_group`.
        transformer_engine: layers from Transformer Engine's spec; else megatron-core's local spec with torch parts.
        fused_weight_gradient: apex's kernel that adds the weight gradient straight into the fp32 buffer.
        fused_kernels: megatron-core's compiled bias, activation and rotary kernels.
        ordered_sends: a tensor may be freed once its send was issued (CUDA streams keep the order; gloo does not).
    """

    kind: Literal["cpu", "cuda"]
    device: torch.device
    distributed: Literal["gloo", "nccl"]
    transformer_engine: bool
    fused_weight_gradient: bool
    fused_kernels: bool
    ordered_sends: bool

    def adapt(self) -> AbstractContextManager[None]:
        """Context in which megatron-core works on this backend; open it once, around everything. No-op on CUDA."""
        if self.kind == "cuda":
            return contextlib.nullcontext()
        from sophia_mcore.parallel.cpu import adaptation

        return adaptation()

    def check_fp8(self, recipe: str, implementation: str = "transformer_engine") -> None:
        """Refuse FP8 where it would have no effect (megatron-core ignores it without Transformer Engine).

        `implementation` is fp8.backend: an emulation is used only where it was asked for by name.
        """
        if recipe == "none":
            return
        if implementation == "emulated":
            if self.transformer_engine:
                raise UsageError(
                    "fp8.backend = 'emulated', but Transformer Engine is here: set it to 'transformer_engine'"
                )
            return
        if not self.transformer_engine:
            lacks = "a CUDA device" if self.kind == "cpu" else "Transformer Engine"
            raise fp8_refusal(recipe, lacks)

    def check_offload(self, fraction: float) -> None:
        """Refuse to move the optimizer to the host where it is there already (megatron-core would copy it twice)."""
        if fraction and self.kind == "cpu":
            raise UsageError(f"train.optimizer_offload_fraction = {fraction} needs a CUDA device; set it to 0")


def select(local_rank: int = 0, kind: Literal["auto", "cpu", "cuda"] = "auto") -> Backend:
    """The backend of this process; `local_rank` chooses the CUDA device (torchrun's LOCAL_RANK)."""
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
    return Backend(
        kind="cuda",
        device=device,
        distributed="nccl",
        transformer_engine=_installed("transformer_engine"),
        fused_weight_gradient=_installed("fused_weight_gradient_mlp_cuda"),
        fused_kernels=True,
        ordered_sends=True,
    )


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None

"""Transformer Engine's modules computed in plain torch, so that everything around its kernels runs on a CPU.

Replaced: the forward of Linear, LayerNormLinear, RMSNorm and DotProductAttention, the fused rotary kernel, FusedAdam's
step and the multi-tensor kernels. Real: construction, parameters and their marks, megatron-core's wrappers and specs,
FP8 contexts and recipes, packed_seq_params as they arrive. Arguments are bound to the real signatures; what the kernels
demand of shapes and dtypes is asserted. `Call` says what each call saw, so that a test can prove that this path ran.

FP8 weights: as in the real modules, the copy of a weight is made when is_first_microbatch is True (or None), and used
until the next time. Values are not rounded.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import transformer_engine.pytorch as te
from megatron.core import optimizer as mcore_optimizer
from megatron.core.extensions import transformer_engine as wrappers
from megatron.core.optimizer import distrib_optimizer
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from transformer_engine.pytorch import distributed as te_distributed
from transformer_engine.pytorch.optimizers import FusedAdam
from transformer_engine.pytorch.quantization import FP8GlobalStateManager

from sophia_mcore.model.parts import CoreAttention
from sophia_mcore.train.optim import Adam
from tests.support import pretended_cuda

WHAT = "Transformer Engine's modules in plain torch (tests/cuda_path): no kernel, no rounding to FP8"
_SIGNATURES = {c: inspect.signature(c.forward) for c in (te.Linear, te.LayerNormLinear, te.DotProductAttention)}


@dataclass(frozen=True)
class Call:
    """One call of a module of Transformer Engine."""

    kind: str  # linear, norm linear, norm, attention, rotary, adam
    how: str = ""  # column or row; sbhd or thd
    fp8: str = ""  # the recipe's class; "": outside FP8
    first: bool | None = None  # is_first_microbatch: renew the FP8 copy of the weight


def _recipe() -> Any:
    return FP8GlobalStateManager.get_fp8_recipe() if FP8GlobalStateManager.is_fp8_enabled() else None


def _name(recipe: Any) -> str:
    return "" if recipe is None else type(recipe).__name__


def _product(module: Any, x: torch.Tensor, first: bool | None) -> torch.Tensor:
    """x times the module's weight, or the copy of it that FP8 would use."""
    weight, recipe = module.weight, _recipe()
    assert x.dtype == weight.dtype, (x.dtype, weight.dtype)
    if recipe is None:
        return F.linear(x, weight)
    # what cuBLAS wants of FP8 products
    assert x.numel() // x.shape[-1] % 8 == 0 and x.shape[-1] % 16 == 0, f"FP8 input {tuple(x.shape)}"
    assert weight.shape[0] % 8 == 0 and weight.shape[1] % 16 == 0, f"FP8 weight {tuple(weight.shape)}"
    if first is None or first or getattr(module, "_shim_copy", None) is None:
        module._shim_copy = weight.detach().clone()
    return F.linear(x, weight + (module._shim_copy - weight).detach())


def _column_input(module: Any, x: torch.Tensor) -> torch.Tensor:
    if module.sequence_parallel:
        return gather_from_sequence_parallel_region(x, True, group=module.tp_group)
    return copy_to_tensor_model_parallel_region(x, group=module.tp_group)


def _with_bias(module: Any, out: torch.Tensor) -> Any:
    bias = module.bias if module.use_bias else None
    if module.return_bias:
        return out, bias
    return out if bias is None else out + bias


def _rotary(calls: list[Call], real: Any) -> Any:
    def rotary(t: torch.Tensor, freqs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        bound = inspect.signature(real).bind(t, freqs, *args, **kwargs).arguments
        assert bound.get("fused") is True and freqs.dtype == torch.float32 and freqs.dim() == 4, freqs.dtype
        if bound.get("tensor_format") == "thd":
            ends = bound["cu_seqlens"]
            assert ends.dtype == torch.int32 and t.dim() == 3
            longest = int((ends[1:] - ends[:-1]).max())
            assert len(freqs) >= longest, f"{len(freqs)} rotary positions for a sequence of {longest}"
        calls.append(Call("rotary", bound.get("tensor_format", "")))
        bound["fused"] = False  # Transformer Engine's own implementation in torch
        return real(**bound)

    return rotary


def _attention(calls: list[Call], self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    bound = _SIGNATURES[te.DotProductAttention].bind(self, *args, **kwargs).arguments
    q, k, v = bound["query_layer"], bound["key_layer"], bound["value_layer"]
    form, mask = bound.get("qkv_format") or self.qkv_format, bound.get("attn_mask_type") or self.attn_mask_type
    calls.append(Call("attention", form, _name(_recipe())))
    size = self.cp_group.size() if self.cp_group is not None else 1
    heads, groups = self.num_attention_heads // self.tp_size, max(1, self.num_gqa_groups // self.tp_size)
    assert (q.shape[-2], k.shape[-2]) == (heads, groups) and self.attention_dropout == 0.0
    core = SimpleNamespace(group=self.cp_group, scale=self.softmax_scale)
    if size == 1:
        core.group = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    for name in ("_whole", "_sequence"):
        setattr(core, name, getattr(CoreAttention, name).__get__(core))
    packed = None
    if form == "thd":
        _check_packed(bound, mask, len(q) * size, size)
        packed = SimpleNamespace(cu_seqlens_q=bound["cu_seqlens_q"])
    else:
        assert form == "sbhd" and q.dim() == 4 and mask == "causal", (form, q.shape, mask)
    return CoreAttention.forward(core, q, k, v, None, packed_seq_params=packed)  # type: ignore[arg-type]


def _check_packed(bound: dict[str, Any], mask: str, tokens: int, size: int) -> None:
    assert bound["query_layer"].dim() == 3 and mask == "padding_causal", mask
    for name in ("cu_seqlens_q", "cu_seqlens_kv"):
        assert bound[name].dtype == torch.int32 and bound[name].dim() == 1 and bound[name][0] == 0
    for name in ("cu_seqlens_q_padded", "cu_seqlens_kv_padded"):
        assert bound.get(name) is None or bound[name].dtype == torch.int32
    assert type(bound["max_seqlen_q"]) is int and type(bound["max_seqlen_kv"]) is int
    ends = bound["cu_seqlens_q"]
    lengths = ends[1:] - ends[:-1]
    assert int(ends[-1]) == tokens and int(lengths.max()) == bound["max_seqlen_q"]
    assert bool((lengths > 0).all()), "an empty sequence"
    assert size == 1 or bool((lengths % (2 * size) == 0).all())


def _forwards(calls: list[Call]) -> dict[Any, Any]:
    """The forward of each module."""

    def linear(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = _SIGNATURES[te.Linear].bind(self, *args, **kwargs).arguments
        x, first = bound["inp"], bound.get("is_first_microbatch")
        calls.append(Call("linear", self.parallel_mode, _name(_recipe()), first))
        out = _product(self, _column_input(self, x) if self.parallel_mode == "column" else x, first)
        if self.parallel_mode == "row" and self.sequence_parallel:
            out = reduce_scatter_to_sequence_parallel_region(out, group=self.tp_group)
        elif self.parallel_mode == "row":
            out = reduce_from_tensor_model_parallel_region(out, group=self.tp_group)
        return _with_bias(self, out)

    def norm_linear(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = _SIGNATURES[te.LayerNormLinear].bind(self, *args, **kwargs).arguments
        x, first = bound["inp"], bound.get("is_first_microbatch")
        calls.append(Call("norm linear", self.parallel_mode, _name(_recipe()), first))
        assert self.normalization == "RMSNorm" and not self.zero_centered_gamma
        x = F.rms_norm(x, self.layer_norm_weight.shape, self.layer_norm_weight, self.eps)
        return _with_bias(self, _product(self, _column_input(self, x), first))

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        calls.append(Call("norm"))
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    return {
        te.Linear: linear,
        te.LayerNormLinear: norm_linear,
        te.RMSNorm: norm,
        te.DotProductAttention: lambda self, *args, **kwargs: _attention(calls, self, *args, **kwargs),
    }


@contextlib.contextmanager
def shimmed() -> Iterator[list[Call]]:
    """The CUDA path on CPU tensors while open; yields the record of calls. torch.cuda answers as on an H100."""
    calls: list[Call] = []

    @torch.no_grad()
    def adam(self: Any, closure: Any = None, grad_scaler: Any = None) -> None:
        calls.append(Call("adam"))
        assert self.adam_w_mode in (True, 1)
        state = SimpleNamespace(param_groups=self.param_groups, state=self.state)
        state._update = lambda group, parameters: Adam._update(self, group, parameters)
        Adam.step(state)  # type: ignore[arg-type]

    def get_state(*_: Any, **__: Any) -> torch.Tensor:
        return torch.get_rng_state()

    patches: list[tuple[Any, str, Any]] = [
        *((module, "forward", forward) for module, forward in _forwards(calls).items()),
        (wrappers, "apply_rotary_pos_emb", _rotary(calls, wrappers.apply_rotary_pos_emb)),
        (FusedAdam, "step", adam),
        (te_distributed, "_get_cuda_rng_state", get_state),
        (te_distributed, "_set_cuda_rng_state", lambda state, *_, **__: torch.set_rng_state(state)),
        # the adaptation for CPU takes these away where Transformer Engine is installed
        (mcore_optimizer, "Adam", FusedAdam),
        (mcore_optimizer, "USING_PYTORCH_OPTIMIZER", False),
        (distrib_optimizer, "Adam", FusedAdam),
    ]
    with pretended_cuda.pretended(), contextlib.ExitStack() as stack:
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield calls

"""FP8 products without an FP8 device: scaled and rounded as Transformer Engine does, multiplied in fp32.

Notation: x [T, K] inputs, w [N, K] weight, g [T, N] gradient of the output; Q rounds a scaled tensor to the FP8 grid
and scales it back. y = Q(x) Q(w)^T, dx = Q(g) Q(w), dw = Q(g)^T Q(x).

tensorwise  one scale per tensor, from its own largest magnitude (amax)
delayed     one scale per tensor, from the amax of earlier forward passes; larger values saturate
blockwise   1 x 128 values share a scale along the dimension that is summed over, 128 x 128 in weights; powers of two

Amax and history are this rank's own, and the history is not part of checkpoints: the delayed recipe begins anew after
a resume, with the present tensor's amax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor, nn

from sophia_mcore.config.precision import Fp8

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BLOCK = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How the products of a layer are scaled and rounded."""

    recipe: str  # tensorwise, delayed or blockwise
    gradient_dtype: torch.dtype = E5M2
    history: int = 1024
    most_recent: bool = False

    @staticmethod
    def of(recipe: str, settings: Fp8) -> Scaling:
        """From the configuration."""
        return Scaling(
            recipe=recipe,
            gradient_dtype=E5M2 if settings.format == "hybrid" else E4M3,
            history=settings.amax_history,
            most_recent=settings.amax_algorithm == "most_recent",
        )


def round_to(values: Tensor, dtype: torch.dtype, amax: Tensor, *, power_of_two: bool = False) -> Tensor:
    """fp32 values on the FP8 grid on which `amax` (broadcast) is the largest number; beyond it they saturate.

    An amax of zero takes scale 1.
    """
    largest = torch.finfo(dtype).max
    scale = torch.where(amax > 0, largest / amax.clamp_min(torch.finfo(torch.float32).tiny), torch.ones_like(amax))
    if power_of_two:
        scale = torch.exp2(torch.floor(torch.log2(scale)))
    scale = scale.clamp_max(2.0**126)  # 1 / scale stays a normal number
    return (values * scale).clamp(-largest, largest).to(dtype).float() / scale


def round_tensor(values: Tensor, dtype: torch.dtype) -> Tensor:
    """One scale for all."""
    return round_to(values, dtype, values.abs().amax())


def round_blocks(values: Tensor, dtype: torch.dtype, rows: int, columns: int) -> Tensor:
    """One power of two as scale for each block of `rows` x `columns` of a matrix; the last blocks may be smaller."""
    height, width = values.shape
    padded = nn.functional.pad(values, (0, -width % columns, 0, -height % rows))
    blocks = padded.view(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    rounded = round_to(blocks, dtype, blocks.abs().amax((1, 3), keepdim=True), power_of_two=True)
    return rounded.view_as(padded)[:height, :width]


class Rounding(nn.Module):
    """Q for one linear layer; holds the amax histories of its input, weight and output gradient (delayed)."""

    history: Tensor

    def __init__(self, scaling: Scaling) -> None:
        super().__init__()
        self.scaling = scaling
        self.active = True
        if scaling.recipe == "delayed":
            self.register_buffer("history", torch.zeros(3, scaling.history), persistent=False)

    def per_tensor(self, which: int, values: Tensor, dtype: torch.dtype, remember: bool) -> Tensor:
        """Q of input (0), weight (1) or gradient (2) with one scale."""
        if self.scaling.recipe != "delayed":
            return round_tensor(values, dtype)
        past, now = self.history[which], values.abs().amax()
        amax = past[0] if self.scaling.most_recent else past.max()
        amax = torch.where(amax > 0, amax, now)
        if remember:
            self.history[which] = past.roll(1)
            self.history[which, 0] = now
        return round_to(values, dtype, amax)


class _Product(torch.autograd.Function):
    """y = Q(x) Q(w)^T [T, N] in fp32 with both gradients in FP8."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_NK: Tensor, rounding: Rounding, remember: bool) -> Tensor:
        ctx.rounding, ctx.dtypes = rounding, (x_TK.dtype, weight_NK.dtype)
        x_TK, weight_NK = x_TK.float(), weight_NK.float()
        if rounding.scaling.recipe == "blockwise":
            rounded_x = round_blocks(x_TK, E4M3, 1, BLOCK)
            rounded_weight = round_blocks(weight_NK, E4M3, BLOCK, BLOCK)
            x_for_weight = round_blocks(x_TK, E4M3, BLOCK, 1)
        else:
            rounded_x = x_for_weight = rounding.per_tensor(0, x_TK, E4M3, remember)
            rounded_weight = rounding.per_tensor(1, weight_NK, E4M3, remember)
        ctx.save_for_backward(x_for_weight, rounded_weight)
        return rounded_x @ rounded_weight.T

    @staticmethod
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        x_TK, weight_NK = ctx.saved_tensors
        rounding, grad_TN = ctx.rounding, grad_TN.float()
        dtype = rounding.scaling.gradient_dtype
        if rounding.scaling.recipe == "blockwise":
            for_x, for_weight = round_blocks(grad_TN, dtype, 1, BLOCK), round_blocks(grad_TN, dtype, BLOCK, 1)
        else:
            for_x = for_weight = rounding.per_tensor(2, grad_TN, dtype, True)
        grad_x = (for_x @ weight_NK).to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        grad_weight = (for_weight.T @ x_TK).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None, None


def fp8_linear(x: Tensor, weight: Tensor, rounding: Rounding) -> Tensor:
    """x [..., K] times weight [N, K] in emulated FP8, in x's dtype."""
    if not rounding.active:
        return nn.functional.linear(x, weight)
    out = _Product.apply(x.flatten(0, -2), weight, rounding, torch.is_grad_enabled())
    return out.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def _product(
    rounding: Rounding, x: Tensor, weight: Tensor, bias: Tensor | None, sequence_parallel: bool, reduce_gradient: bool,
    group: Any,
) -> Tensor:  # fmt: skip
    if sequence_parallel:
        x = gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=True, group=group)
    elif reduce_gradient:
        x = copy_to_tensor_model_parallel_region(x, group=group)
    out = fp8_linear(x, weight, rounding)
    return out if bias is None else out + bias


class Fp8ColumnLinear(ColumnParallelLinear):
    """megatron-core's column-parallel linear layer with emulated FP8 products, scaled as a subclass says."""

    scaling: Scaling

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rounding = Rounding(self.scaling)

    def _forward_impl(self, input: Tensor, weight: Tensor, **how: Any) -> Tensor:
        return _product(
            self.rounding, input, weight, how["bias"], how["sequence_parallel"], how["allreduce_dgrad"], how["tp_group"]
        )


class Fp8RowLinear(RowParallelLinear):
    """The same for the row-parallel layer, whose sums over ranks come after the product."""

    scaling: Scaling

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rounding = Rounding(self.scaling)

    def _forward_impl(self, input: Tensor, weight: Tensor, **how: Any) -> Tensor:
        return _product(self.rounding, input, weight, how["bias"], False, False, None)


@dataclass(frozen=True, slots=True)
class Emulation:
    """Puts emulated FP8 products into megatron-core's layer specs (those with plain torch parts)."""

    recipe: str
    settings: Fp8

    def replace(self, layer: ModuleSpec, number: int, layers: int) -> None:
        """Change the spec of decoder layer `number` of `layers` unless it stays in bf16."""
        if self.settings.in_bf16(number, layers):
            return
        scaling = Scaling.of(self.recipe, self.settings)
        # classes: 0.16 builds a class or a ModuleSpec, 0.19 calls what it finds
        column, row = (type(kind.__name__, (kind,), {"scaling": scaling}) for kind in (Fp8ColumnLinear, Fp8RowLinear))
        attention, mlp = parts_of(layer.submodules.self_attention), parts_of(layer.submodules.mlp)
        if not self.settings.attention_in_bf16:
            attention.linear_qkv, attention.linear_proj = column, row
        mlp.linear_fc1, mlp.linear_fc2 = column, row


def parts_of(spec: Any) -> Any:
    """The parts of a spec: a ModuleSpec, or (from 0.17 on) a partial call of the module."""
    return spec.keywords["submodules"] if isinstance(spec, partial) else spec.submodules


def keep_in_bf16(decoder: nn.Module, settings: Fp8) -> None:
    """Transformer Engine: leave the FP8 context in what stays in bf16 beyond megatron-core's first and last layers."""
    for layer in decoder.layers:  # type: ignore[union-attr]
        layer.in_fp8 = layer.layer_number - 1 not in settings.layers_in_bf16
        _outside_fp8(layer, unless=layer)
        if settings.attention_in_bf16:
            _outside_fp8(layer.self_attention.linear_qkv)
            _outside_fp8(layer.self_attention.linear_proj)


def switch_layers(decoder: nn.Module, in_fp8: Callable[[int], bool]) -> None:
    """Turn FP8 off in the decoder layers (by number) that `in_fp8` does not want, until called again.

    Layers that the configuration keeps in bf16 stay there. Not for the delayed recipe.
    """
    for layer in decoder.layers:  # type: ignore[union-attr]
        layer.in_fp8 = in_fp8(layer.layer_number - 1)
        for module in layer.modules():
            if isinstance(module, Rounding):
                module.active = layer.in_fp8


def _outside_fp8(module: nn.Module, unless: Any = None) -> None:
    """Compute `module` outside Transformer Engine's FP8 context, unless the layer `unless` is in FP8 at that time."""
    from transformer_engine.pytorch import fp8_autocast

    forward = module.forward

    def call(*args: Any, **kwargs: Any) -> Any:
        if unless is not None and unless.in_fp8:
            return forward(*args, **kwargs)
        with fp8_autocast(enabled=False):
            return forward(*args, **kwargs)

    module.forward = call  # type: ignore[method-assign]

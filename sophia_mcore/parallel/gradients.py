"""Gradients of parameters that tensor-parallel ranks hold whole while each sees only its share of the work."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import finalize_model_grads
from torch import Tensor, nn

_MARK = "sum_gradient_over_tensor_parallel"


def sum_over_tensor_parallel(parameter: nn.Parameter) -> None:
    """Mark a parameter whose ranks each computed a part of the gradient (vision tower, projector)."""
    setattr(parameter, _MARK, True)


def finalize(
    model: list[nn.Module],
    num_tokens: Tensor | None = None,
    pg_collection: Any = None,
    force_all_reduce: bool | None = False,
) -> None:
    """megatron-core's `finalize_model_grads`, then the sums of the marked parameters.

    `lvlm.build` puts this into the model's config, where the pipeline schedules find it. Summing after scaling and
    after the data-parallel reduction gives the same, and happens once per step.
    """
    finalize_model_grads(model, num_tokens, pg_collection=pg_collection, force_all_reduce=force_all_reduce)
    chunk = model[0]
    while hasattr(chunk, "module"):
        chunk = chunk.module
    group = chunk.groups.tensor
    if group.size() == 1:
        return
    marked = [p for chunk in model for p in chunk.parameters() if p.requires_grad and getattr(p, _MARK, False)]
    gradients = [p.main_grad if hasattr(p, "main_grad") else p.grad for p in marked]
    if gradients:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=group)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

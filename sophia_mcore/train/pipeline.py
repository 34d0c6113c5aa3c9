"""Rows of packed sequences through Megatron's pipeline schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func

from sophia_mcore.batch.collate import PackedBatch
from sophia_mcore.train.job import Job


def model_inputs(batch: PackedBatch, coefficients: Any = None) -> dict[str, Any]:
    """Arguments of the model for a row of packed sequences; ``coefficients`` as `objective.losses` gives them."""
    if torch.is_tensor(coefficients):
        coefficients = coefficients.view_as(batch.targets)
    packed = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        max_seqlen_q=batch.max_seqlen,
        max_seqlen_kv=batch.max_seqlen,
    )
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "packed_seq_params": packed,
        "pixel_values": batch.pixel_values,
        "picture_grids": batch.picture_grids,
        "feature_index": batch.feature_index,
        "targets": batch.targets,
        "coefficients": coefficients,
        "picture_keys": batch.picture_keys,
        "sample_ids": batch.sample_ids,
        "real_tokens": batch.sequence_ids >= 0,
    }


def run_schedule(
    job: Job, forward_step: Any, batches: Sequence[PackedBatch], *, forward_only: bool = False
) -> list[Any]:
    """Megatron's pipeline schedule over the micro batches; returns the reports (last stage), one per micro batch.

    An image that several of them show goes through a frozen vision tower once.
    """
    rows_of_pictures = Counter(key for batch in batches for key in batch.picture_keys)
    for chunk in job.chunks:
        chunk.module.start_step(rows_of_pictures)
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[iter(batches) for _ in job.chunks] if len(job.chunks) > 1 else iter(batches),
        model=job.chunks,
        num_microbatches=len(batches),
        seq_length=batches[0].input_ids.shape[1],
        micro_batch_size=1,
        forward_only=forward_only,
    )

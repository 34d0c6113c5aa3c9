"""Mean log-prob of kept trajectories under the policy: what the method assumes and the paper does not measure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from sophia_mcore.batch.collate import PackedBatch
from sophia_mcore.train.job import Job
from sophia_mcore.train.schedule import model_inputs, run_schedule


def mean_logprob(job: Job, batches: Sequence[PackedBatch]) -> float:
    """Mean natural-log probability per target token of ``batches`` over all data-parallel ranks, on every rank.

    ``batches`` are this rank's micro batches; the number of them is the same on every rank.
    """

    def forward_step(iterator: Iterator[PackedBatch], model: DistributedDataParallel) -> tuple[Tensor, Any]:
        batch = next(iterator).to(job.backend.device)

        def report(logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mask = batch.target_mask
            sums = torch.stack((logprobs[mask].double().sum(), mask.sum().double()))
            return logprobs.sum(), torch.zeros((), dtype=torch.int), sums

        return model(**model_inputs(batch)), report

    with torch.no_grad():
        reports = run_schedule(job, forward_step, batches, forward_only=True)
    total, tokens = all_ranks_sum(job, reports, 2).tolist()
    return total / tokens if tokens else math.nan


def all_ranks_sum(job: Job, reports: Sequence[Tensor], size: int) -> Tensor:
    """Sum [size] float64 of the reports over micro batches and data-parallel ranks, the same on every rank."""
    total = torch.zeros(size, dtype=torch.float64, device=job.backend.device)
    if job.reports:
        for report in reports:
            total += report
    dist.all_reduce(total)
    return total

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
from sophia_mcore.model.lvlm import Scores
from sophia_mcore.train.job import Job
from sophia_mcore.train.pipeline import model_inputs, run_schedule


def mean_logprob(job: Job, batches: Sequence[PackedBatch]) -> float:
    """Mean natural-log probability per target token of ``batches`` over all data-parallel ranks, on every rank.

    ``batches`` are this rank's micro batches; the number of them is the same on every rank.
    """
    total = torch.zeros(2, dtype=torch.float64, device=job.backend.device)
    for batch, logprobs in zip(batches, target_logprobs(job, batches), strict=False):  # none before the last stage
        mask = batch.target_mask.to(logprobs.device)
        total += torch.stack((logprobs[mask].double().sum(), mask.sum().double()))
    if not job.reports:
        total.zero_()
    dist.all_reduce(total)
    logprob_sum, tokens = total.tolist()
    return logprob_sum / tokens if tokens else math.nan


def target_logprobs(job: Job, batches: Sequence[PackedBatch]) -> list[Tensor]:
    """Log-probs [1, S] fp32 of the targets of each micro batch under the present policy; [] before the last stage."""

    def forward_step(iterator: Iterator[PackedBatch], model: DistributedDataParallel) -> tuple[Tensor, Any]:
        def report(scores: Scores) -> tuple[Tensor, Tensor, Tensor]:
            return scores.logprobs.sum(), torch.zeros((), dtype=torch.int), scores.logprobs

        return model(**model_inputs(next(iterator).to(job.backend.device))), report

    with torch.no_grad():
        return run_schedule(job, forward_step, batches, forward_only=True)

"""How far two sets of log-probs of the same tokens lie apart; above all the trainer's and the sampling engine's.

The policy's own captions are there with the engine's log-prob of every token. Before the first update the trainer holds
the same weights, so any gap comes from the two implementations (kernels, precision, templates), and the ratios of
off-policy objectives inherit it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from sophia_mcore.batch.caption_samples import comparable_captions
from sophia_mcore.batch.collate import PackedBatch, split_logprobs
from sophia_mcore.train.job import RoundJob
from sophia_mcore.train.policy_logprobs import target_logprobs


def rollout_gap(job: RoundJob) -> dict[str, float] | None:
    """`gap_statistics` of |log-prob of the trainer - of the engine| over caption tokens, on every rank.

    None where there is nothing to compare: no captions, no recorded log-probs, or captions that were not sampled at
    temperature 1 and top-p 1 (the engine's log-probs are under the distribution it sampled from).
    """
    if job.captions is None:
        return None
    recorded = {caption.id: np.array(caption.token_logprobs) for caption in comparable_captions(job.config, job.folder)}
    found: list[NDArray[np.float64]] = []
    rows = job.captions.everything()
    while batches := list(islice(rows, 4 * job.groups.pipeline_size)):
        for batch, logprobs in zip(batches, target_logprobs(job, batches), strict=False):
            for name, values in split_logprobs(batch, logprobs).items():
                found.append(np.abs(values.astype(np.float64) - recorded[name]))
    gaps = gather_values(np.concatenate([np.zeros(0), *found]), job.reports)
    return gap_statistics(gaps, job.config.train.warn_rollout_gap)


def gap_statistics(gaps: NDArray[np.floating], beyond: float) -> dict[str, float]:
    """Of |log p - log q| per token, nats: {"mean", "p99", "max", "share_beyond", "tokens"}.

    ``share_beyond``: part of the tokens whose gap exceeds ``beyond``. Zeros without any token; a gap that is not finite
    makes mean and max infinite.

    >>> gap_statistics(np.array([0.0, 0.5, 1.0]), beyond=0.6)["max"]
    1.0
    """
    if not len(gaps):
        return {"mean": 0.0, "p99": 0.0, "max": 0.0, "share_beyond": 0.0, "tokens": 0}
    gaps = np.where(np.isfinite(gaps), gaps, np.inf)
    return {
        "mean": float(gaps.mean()),
        "p99": float(np.quantile(gaps, 0.99, method="higher")),
        "max": float(gaps.max()),
        "share_beyond": float((gaps > beyond).mean()),
        "tokens": len(gaps),
    }


def targets_of(batches: Sequence[PackedBatch], logprobs: Sequence[Any]) -> NDArray[np.float64]:
    """The log-probs [1, S] of all micro batches at their targets, one after another; empty before the last stage."""
    found = [
        values.detach().double().cpu()[batch.target_mask.cpu()].numpy()
        for batch, values in zip(batches, logprobs, strict=False)
    ]
    return np.concatenate([np.zeros(0), *found])


def gather_values(values: NDArray[np.float64], reports: bool) -> NDArray[np.float64]:
    """The values of all ranks that report (others pass whatever they have), joined, on every rank."""
    pieces: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pieces, values if reports else None)
    return np.concatenate([np.zeros(0), *(piece for piece in pieces if piece is not None)])

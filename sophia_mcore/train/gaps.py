"""How far two sets of log-probs of the same tokens lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from sophia_mcore.batch.collate import PackedBatch


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


def everywhere(values: NDArray[np.float64], reports: bool) -> NDArray[np.float64]:
    """The values of all ranks that report (others pass whatever they have), joined, on every rank."""
    pieces: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pieces, values if reports else None)
    return np.concatenate([np.zeros(0), *(piece for piece in pieces if piece is not None)])

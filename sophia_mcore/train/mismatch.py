"""Do trainer and sampling engine agree about the policy? Log-probs of the same tokens from both.

The policy's own captions are there with the engine's log-prob of every token. Before the first update the trainer holds
the same weights, so any gap comes from the two implementations (kernels, precision, templates), and the ratios of
off-policy objectives inherit it.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sophia_mcore.batch.collate import split_logprobs
from sophia_mcore.train.caption_samples import comparable_captions
from sophia_mcore.train.gaps import everywhere, gap_statistics
from sophia_mcore.train.job import Job
from sophia_mcore.train.measure import target_logprobs


def rollout_gap(job: Job) -> dict[str, float] | None:
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
    gaps = everywhere(np.concatenate([np.zeros(0), *found]), job.reports)
    return gap_statistics(gaps, job.config.train.warn_rollout_gap)

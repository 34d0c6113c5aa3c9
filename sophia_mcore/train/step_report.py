"""What one update reports, and what of it goes into metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sophia_mcore.batch.collate import PackedBatch


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One update over the global batch; the same on every rank but for the last three."""

    loss: float
    gradient_norm: float  # before clipping
    learning_rate: float
    tokens: int  # of prompts and responses, without padding
    target_tokens: int
    samples: int
    stop: bool  # some rank was asked to stop
    writing: bool  # some rank still writes a checkpoint in the background
    bad_samples: tuple[str, ...]  # samples of this rank's micro batches whose loss is not finite
    bad_gradient: bool  # the norm is not finite, and neither is the gradient of this rank's parameters
    measures: Mapping[str, float]  # of the objective, such as "logprob_kept"; all of them where Job.reports

    def values(self, seconds: float) -> dict[str, float | int]:
        """The line of metrics.jsonl for an update that took ``seconds``."""
        return {
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "learning_rate": self.learning_rate,
            "tokens": self.tokens,
            "target_tokens": self.target_tokens,
            "samples": self.samples,
            "step_seconds": round(seconds, 6),
            "tokens_per_second": round(self.tokens / seconds, 1),
            **self.measures,
        }


def counts(batches: Sequence[PackedBatch]) -> tuple[int, int, int]:
    """Tokens without padding, target tokens and samples of this rank's micro batches."""
    return (
        sum(int((batch.sequence_ids >= 0).sum()) for batch in batches),
        sum(int(batch.target_mask.sum()) for batch in batches),
        sum(len(batch.sample_ids) for batch in batches),
    )


def not_finite(logprobs: Tensor, batch: PackedBatch) -> list[str]:
    """Ids of the samples with a log-prob [1, S] that is not finite; of all, when the loss went wrong elsewhere."""
    bad = ~logprobs.detach().isfinite() & batch.target_mask
    rows = batch.sequence_ids[bad].unique().tolist()
    return [batch.sample_ids[row] for row in rows] or list(batch.sample_ids)

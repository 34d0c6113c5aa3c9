"""What the on-policy stage leaves to read: RUN/rl/train/metrics.jsonl, stopped.json, and summary.json in the end.

metrics.jsonl has a line of phase "batch" per batch (step: batches done) and one of phase "update" per optimizer step.
Only the rank with the losses writes; elsewhere nothing happens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.layout import STOPPED
from sophia_mcore.track.metrics import MetricsLog, read_metrics
from sophia_mcore.train.on_policy.job import StageJob

BATCH, UPDATE = "batch", "update"


class StageLog:
    """``start``: updates that the checkpoint holds; later lines of an earlier attempt are dropped."""

    def __init__(self, job: StageJob, start: int) -> None:
        self._folder, self._limit = job.folder.train, job.config.train.warn_rollout_gap
        self._log: MetricsLog | None = None
        if dist.get_rank() == 0:
            (self._folder / STOPPED).unlink(missing_ok=True)
        if job.reports and job.groups.data_rank == 0:
            self._log = MetricsLog(job.folder.metrics_file)
            self._log.rewind(start, UPDATE)
            self._log.rewind(start // job.rl.updates_per_batch, BATCH)

    def update(self, step: int, values: Mapping[str, float | int]) -> None:
        """``step``: updates done."""
        if self._log is not None:
            self._log.log(step, UPDATE, values)

    def batch(self, step: int, values: Mapping[str, float | int]) -> None:
        """``step``: batches done."""
        if self._log is not None:
            self._log.log(step, BATCH, values)

    def gap(self, number: int, found: Mapping[str, float]) -> None:
        """Warn of a batch whose answers trainer and engine see differently."""
        if self._log is not None and found.get("rollout_gap_p99", 0.0) > self._limit:
            print(
                f"warning: batch {number}: log-probs of trainer and engine differ by "
                f"{found['rollout_gap_mean']:.3f} nats on average, p99 {found['rollout_gap_p99']:.3f} "
                f"(train.warn_rollout_gap = {self._limit})",
                file=sys.stderr,
                flush=True,
            )


def note_stop(job: StageJob, step: int) -> None:
    """A signal has asked for it: the state after ``step`` updates is saved."""
    if dist.get_rank() == 0:
        write_json(job.folder.train / STOPPED, {"step": step, "time": round(time.time(), 3)})


def summary(job: StageJob, model: int, digest: str, best: tuple[int, float] | None) -> dict[str, Any]:
    """summary.json: ``model`` is the version that the stage keeps."""
    lines = read_metrics(job.folder.metrics_file)
    batches = [line for line in lines if line["phase"] == BATCH]
    updates = [line for line in lines if line["phase"] == UPDATE]
    return {
        "batches": len(batches),
        "updates": len(updates),
        "updates_skipped": sum(line.get("skipped", 0) for line in updates),
        "steps": job.steps,
        "version": model,
        "digest": digest,
        "validation_accuracy": best[1] if best else None,
        "accuracy_first": batches[0].get("accuracy") if batches else None,
        "accuracy_last": batches[-1].get("accuracy") if batches else None,
        "tokens_sampled": sum(line["tokens_sampled"] for line in batches),
        "tokens_trained": sum(line.get("tokens", 0) for line in updates),
        "replayed_differently": sum(line.get("replayed_differently", 0) for line in batches),
        "seconds_waiting": round(sum(line["seconds_waiting"] for line in batches), 3),
        "seconds_training": round(sum(line["seconds_training"] for line in batches), 3),
        "seconds_publishing": round(sum(line["seconds_publishing"] for line in batches), 3),
    }

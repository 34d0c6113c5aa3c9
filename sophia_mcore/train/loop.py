"""The training of one round from wherever it stands: measure, step, log, save, measure, sum up."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.distributed as dist

from sophia_mcore.errors import SophiaError, listed
from sophia_mcore.progress import Progress
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.layout import STOPPED, SUMMARY
from sophia_mcore.track.metrics import TRAIN, MetricsLog, read_metrics
from sophia_mcore.train.job import Job, RoundJob
from sophia_mcore.train.mismatch import rollout_gap
from sophia_mcore.train.policy_logprobs import mean_logprob
from sophia_mcore.train.reference_logprobs import with_reference
from sophia_mcore.train.step import train_step
from sophia_mcore.train.step_report import StepReport

_SHOWN_IDS = 8


def train(job: RoundJob, progress: Progress, stop_asked: Callable[[], bool]) -> bool:
    """Train to the end, or until ``stop_asked`` on any rank; returns whether it is finished.

    Resumed from a checkpoint it goes on as if nothing had happened. Raises SophiaError for a loss or gradient that is
    not finite; the newest checkpoint is then from before it.
    """
    total, every = job.steps, job.config.train.save_every_steps
    start = job.checkpoints.load_newest(job.chunks, job.optimizer)
    job = with_reference(job)
    log = _Log(job, start)
    if start == 0:
        log.event(0, {"logprob_before": mean_logprob(job, _measured(job))})
        log.rollout_gap(rollout_gap(job))
    progress.start("train", total, start)
    saved = start
    log.mark()
    for step, batches in enumerate(job.loader.prefetch(start), start):
        report = train_step(job, batches, step, stop_asked())
        check_finite(job, report, step, partial(job.loader.sample_ids, step))
        log.step(step + 1, report)
        progress.advance()
        progress.note(f"loss {report.loss:.3f}")
        if not report.writing:
            job.checkpoints.finish()
        if (step + 1) % every == 0 or step + 1 == total or report.stop:
            job.checkpoints.save(step + 1, job.chunks, job.optimizer)
            saved = step + 1
            log.mark()  # saving is not part of a step
        if report.stop and saved < total:
            job.checkpoints.finish()
            log.stopped(saved)
            return False
    job.checkpoints.finish()
    log.finish(total, mean_logprob(job, _measured(job)))
    return True


def _measured(job: RoundJob) -> Any:
    return job.loader.fixed(job.config.train.measure_samples)


def check_finite(job: Job, report: StepReport, step: int, sample_ids: Callable[[], list[str]]) -> None:
    """Stop every rank when the loss or the gradient is not finite, saying where and for which samples.

    ``sample_ids``: all those of the step.
    """
    if math.isfinite(report.loss) and math.isfinite(report.gradient_norm):
        return
    mine = (dist.get_rank(), report.bad_samples, report.bad_gradient)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    samples = sorted({sample for _, bad, _ in everyone for sample in bad})
    ranks = [rank for rank, bad, gradient in everyone if bad] or [rank for rank, _, gradient in everyone if gradient]
    what = "loss" if samples else "gradient"
    if not samples:
        samples = sample_ids()
    raise SophiaError(
        f"the {what} of step {step + 1} is not finite (loss {report.loss}, gradient norm {report.gradient_norm}) "
        f"on rank {', '.join(map(str, ranks))}; samples: {listed(samples, _SHOWN_IDS)}; "
        "the last checkpoint is from before"
    )


class _Log:
    """metrics.jsonl, and summary.json in the end, written by the rank that has the losses; elsewhere nothing."""

    def __init__(self, job: RoundJob, start: int) -> None:
        self._folder, self._limit = job.folder.train, job.config.train.warn_rollout_gap
        self._log: MetricsLog | None = None
        self.mark()
        if job.reports and job.groups.data_rank == 0:
            (self._folder / STOPPED).unlink(missing_ok=True)
            self._log = MetricsLog(job.folder.train_metrics_file)
            self._log.rewind(start if start > 0 else -1, TRAIN)

    def mark(self) -> None:
        """The next step's time begins now."""
        self._since = time.perf_counter()

    def event(self, step: int, values: Mapping[str, float]) -> None:
        if self._log is not None:
            self._log.log(step, TRAIN, values)

    def rollout_gap(self, gap: dict[str, float] | None) -> None:
        """Log the statistics; warn when more than one token in a hundred lies beyond train.warn_rollout_gap."""
        if gap is None or self._log is None:
            return
        self.event(0, {f"rollout_gap_{name}": value for name, value in gap.items()})
        if gap["p99"] > self._limit:
            print(
                f"warning: trainer and sampling engine disagree about the policy: log-probs of the same caption tokens "
                f"differ by {gap['mean']:.3f} nats on average, p99 {gap['p99']:.3f}, max {gap['max']:.3f} "
                f"(train.warn_rollout_gap = {self._limit})",
                file=sys.stderr,
                flush=True,
            )

    def step(self, step: int, report: StepReport) -> None:
        """``step``: the number of updates done."""
        before, self._since = self._since, time.perf_counter()
        if self._log is not None:
            self._log.log(step, TRAIN, report.values(self._since - before))

    def stopped(self, step: int) -> None:
        if self._log is not None:
            write_json(self._folder / STOPPED, {"step": step, "time": round(time.time(), 3)})

    def finish(self, steps: int, logprob_after: float) -> None:
        """Write the last event once, then the summary, which says that the training is finished."""
        if self._log is None:
            return
        lines = [line for line in read_metrics(self._log.path) if line["phase"] == TRAIN]
        if not any("logprob_after" in line for line in lines):
            self.event(steps, {"logprob_after": logprob_after})
        losses = [line for line in lines if "loss" in line]
        before = next((line["logprob_before"] for line in lines if "logprob_before" in line), None)
        gap = next((line for line in lines if "rollout_gap_mean" in line), {})
        names = [name for name in gap if name.startswith("rollout_gap_")]
        summary = {
            "rollout_gap": {name.removeprefix("rollout_gap_"): gap[name] for name in names} or None,
            "rollout_gap_limit": self._limit,
            "steps": steps,
            "loss_first": losses[0]["loss"] if losses else None,
            "loss_last": losses[-1]["loss"] if losses else None,
            "logprob_before": before,
            "logprob_after": logprob_after,
            "tokens": sum(line["tokens"] for line in losses),
            "seconds": round(sum(line["step_seconds"] for line in losses), 3),
        }
        write_json(self._folder / SUMMARY, summary)

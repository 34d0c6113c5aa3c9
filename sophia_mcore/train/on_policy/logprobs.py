"""Log-probs of a batch's answers under the trainer, before its first update: the ratio's denominator, the starting
model's for the k3 term, and how far the trainer is from the engine that sampled.

Kept in RUN/rl/old, because a resumed stage has another policy by then, and a replayed answer keeps its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch.distributed as dist

from sophia_mcore.batch.collate import PackedBatch, split_logprobs
from sophia_mcore.batch.tokenize import TokenizedSample
from sophia_mcore.errors import SophiaError
from sophia_mcore.train.checkpoint import on_rank_zero
from sophia_mcore.train.mismatch import gap_statistics, gather_values
from sophia_mcore.train.on_policy.batch import Plan
from sophia_mcore.train.on_policy.job import Logprobs, StageJob, swap_back, swap_in
from sophia_mcore.train.policy_logprobs import target_logprobs
from sophia_mcore.train.reference_logprobs import COMPLETE, FOLDER, measure, read


def measure_batch(job: StageJob, plan: Plan) -> dict[str, float]:
    """Measure what the updates of the batch need, once, and bring it into ``job``; returns the gap's statistics.

    The gap is {} where nothing was measured. All ranks call it together, before the batch's first update.
    Raises SophiaError when the gap's 99th percentile exceeds rl.stop_rollout_gap.
    """
    folder = job.folder.old(plan.number)
    chosen = plan.effective
    if job.rl.measures_old:
        _stored(job, plan, folder, chosen)
        compared = [name for name in chosen if _is_of_now(plan, name)]
        found = {name: job.old[name] for name in compared} if job.groups.is_last_stage else {}
        own = found if job.reports and job.groups.data_rank == 0 else {}
    else:
        first = [name for name, one in plan.answers.items() if not one.imitated and _is_of_now(plan, name)]
        chosen = tuple(sorted(name for name in first if job.tokens.unfit(plan.answers[name]) is None))
        chosen = chosen[: job.config.train.measure_samples]
        own = _present(job, _samples(job, plan, chosen)) if chosen else {}
    if job.rl.needs_reference and plan.effective:
        _reference(job, plan, folder / FOLDER)
    return _gap(job, plan, own)


def bring(job: StageJob, plan: Plan, names: Sequence[str]) -> None:
    """Read the stored log-probs of answers of earlier batches that ``job`` does not have any more; drop the others."""
    if not job.groups.is_last_stage:
        return
    wanted = [(job.old, ".")] if job.rl.measures_old else []
    wanted += [(job.reference, FOLDER)] if job.rl.needs_reference else []
    for known, place in wanted:
        for name in [name for name in known if name not in plan.answers]:
            del known[name]
        missing = {plan.answers[name].batch for name in names if name not in known}
        for number in sorted(missing):
            known |= read(job.folder.old(number) / place)


def forget(job: StageJob, number: int) -> None:
    """Remove what was measured for batch ``number`` and later ones: the policy has come out differently."""
    for path in job.folder.old(0).parent.glob("*"):
        if path.name.isdigit() and int(path.name) >= number:
            shutil.rmtree(path, ignore_errors=True)


def _is_of_now(plan: Plan, name: str) -> bool:
    """Whether the present version has sampled the answer: an older one's log-probs differ because it was older."""
    return plan.answers[name].batch == plan.answers[name].version == plan.number


def _stored(job: StageJob, plan: Plan, folder: Path, names: Sequence[str]) -> None:
    if not names:
        return
    if not on_rank_zero((folder / COMPLETE).is_file, f"cannot read {folder}"):
        measure(job, folder, _rows(job, _samples(job, plan, names)))
    if job.groups.is_last_stage:
        job.old.update(read(folder))


def _reference(job: StageJob, plan: Plan, folder: Path) -> None:
    if not on_rank_zero((folder / COMPLETE).is_file, f"cannot read {folder}"):
        weights = swap_in(job)
        try:
            measure(job, folder, _rows(job, _samples(job, plan, plan.effective)))
        finally:
            swap_back(job, weights)
    if job.groups.is_last_stage:
        job.reference.update(read(folder))


def _samples(job: StageJob, plan: Plan, names: Sequence[str]) -> list[TokenizedSample]:
    return [job.tokens.sample(plan.answers[name], 1.0) for name in names]


def _rows(job: StageJob, samples: Sequence[TokenizedSample]) -> Iterator[PackedBatch]:
    return job.rows.batches(samples)


def _present(job: StageJob, samples: Sequence[TokenizedSample]) -> Logprobs:
    """Log-probs of this rank's rows under the present policy, on the ranks that report."""
    own: Logprobs = {}
    rows = _rows(job, samples)
    while batches := list(islice(rows, 4 * job.groups.pipeline_size)):
        for batch, logprobs in zip(batches, target_logprobs(job, batches), strict=False):
            own |= split_logprobs(batch, logprobs)
    return own if job.reports else {}


def _gap(job: StageJob, plan: Plan, own: Logprobs) -> dict[str, float]:
    differences = [values.astype(np.float64) - plan.answers[name].logprobs for name, values in own.items()]
    gathered = gather_values(np.concatenate([np.zeros(0), *differences]), job.reports)
    dist.barrier()
    if not len(gathered):
        return {}
    found = gap_statistics(np.abs(gathered), job.config.train.warn_rollout_gap)
    k3 = float(np.mean(np.exp(np.clip(gathered, -60.0, 60.0)) - 1.0 - np.clip(gathered, -60.0, 60.0)))
    if not found["p99"] <= job.rl.stop_rollout_gap:
        raise SophiaError(
            f"batch {plan.number}: log-probs of trainer and engine differ by {found['p99']:.3f} nats at the 99th "
            f"percentile (mean {found['mean']:.3f}, rl.stop_rollout_gap = {job.rl.stop_rollout_gap}): an engine "
            "samples with other weights than its version's"
        )
    return {"rollout_gap_mean": found["mean"], "rollout_gap_p99": found["p99"], "rollout_gap_k3": k3}

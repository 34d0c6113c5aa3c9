"""Log-probs of the trajectories under the policy before training: what the behaviour mode "reference" divides by.

Measured once, before the first update, and kept in RUN/round-R/train/reference, because a resumed run has another
policy. One file per data-parallel rank; complete.json, written last, says how many.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from sophia_mcore.batch.collate import PackedBatch, split_logprobs
from sophia_mcore.errors import SophiaError
from sophia_mcore.store.atomic import replacing, write_json
from sophia_mcore.train.checkpoint import on_rank_zero
from sophia_mcore.train.job import Job, RoundJob
from sophia_mcore.train.policy_logprobs import target_logprobs

COMPLETE = "complete.json"
FOLDER = "reference"  # in a training's folder, or in a batch's
Logprobs = dict[str, NDArray[np.float32]]  # natural log of each response token, by sample id


def with_reference(job: RoundJob) -> RoundJob:
    """The job whose batches bring the reference log-probs, if the objective asks for them; measures them if need be.

    Call before the first update, or when resuming.
    """
    if job.config.objective.behaviour != "reference":
        return job
    folder = job.folder.train / FOLDER
    if not on_rank_zero((folder / COMPLETE).is_file, f"cannot read {folder}"):
        measure(job, folder, job.loader.everything())
    if not job.groups.is_last_stage:  # only the last stage has a loss
        return job
    return replace(job, loader=job.loader.with_logprobs(behaviour=read(folder)))


def measure(job: Job, folder: Path, rows: Iterator[PackedBatch]) -> None:
    """Write the log-probs of the targets of ``rows`` under the present policy into ``folder``; all ranks together.

    ``rows``: this rank's micro batches, as many as on every rank.
    """
    own: Logprobs = {}
    at_once = 4 * job.groups.pipeline_size  # keeps the pipeline full, and memory small
    while batches := list(islice(rows, at_once)):
        for batch, logprobs in zip(batches, target_logprobs(job, batches), strict=False):
            own |= split_logprobs(batch, logprobs)
    if job.reports:
        _write(folder / f"part-{job.groups.data_rank}.npz", own)
    dist.barrier()
    parts = {"parts": job.groups.data_size}
    on_rank_zero(lambda: write_json(folder / COMPLETE, parts), f"cannot write {folder}")


def _write(path: Path, logprobs: Logprobs) -> None:
    values = [np.zeros(0, np.float32), *logprobs.values()]
    with replacing(path) as file:
        np.savez(file, ids=np.array(list(logprobs), np.str_), sizes=[len(v) for v in values], values=np.hstack(values))


def read(folder: Path) -> Logprobs:
    """What `measure` has written. Raises SophiaError when it is incomplete or damaged."""
    logprobs: Logprobs = {}
    try:
        for part in range(json.loads((folder / COMPLETE).read_text())["parts"]):
            with np.load(folder / f"part-{part}.npz", allow_pickle=False) as file:
                pieces = np.split(file["values"], np.cumsum(file["sizes"]))[1:-1]
                logprobs |= zip(file["ids"].tolist(), pieces, strict=True)
    except (OSError, ValueError, KeyError) as error:
        raise SophiaError(f"{folder}: cannot be read ({error}); delete it and the checkpoints to start over") from None
    return logprobs

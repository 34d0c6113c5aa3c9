"""Everything one rank needs for the on-policy stage: model, optimizer, rows, the plan of batches."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from sophia_mcore.batch.collate import PackedBatch
from sophia_mcore.batch.reader import Reader
from sophia_mcore.batch.rows import Rows
from sophia_mcore.config.rl import Rl
from sophia_mcore.config.schema import Config
from sophia_mcore.model import lvlm
from sophia_mcore.parallel.backend import Backend
from sophia_mcore.parallel.groups import Groups
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.records import Question
from sophia_mcore.rl.devices import DeviceLock
from sophia_mcore.rl.prompts import system_prompt
from sophia_mcore.rl.questions import read_stage_questions
from sophia_mcore.rl.start import rl_start
from sophia_mcore.rl.versions import read_version
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.rl_folder import RlFolder
from sophia_mcore.store.user_files import load_function
from sophia_mcore.train.checkpoint import Checkpoints
from sophia_mcore.train.checkpoint_folder import list_checkpoints
from sophia_mcore.train.job import Job
from sophia_mcore.train.on_policy.answers import Tokens
from sophia_mcore.train.on_policy.batch import Plan, Planner, Update
from sophia_mcore.train.optim import build_optimizer, wrap_ddp
from sophia_mcore.weights.load import load_hf

Logprobs = dict[str, NDArray[np.float32]]  # natural log of each response token, by sample id


@dataclass(frozen=True, kw_only=True)
class StageJob(Job):
    """The training of the on-policy stage. ``config`` is the trainer's view of the configuration (`Config.rl_view`)."""

    run: RunFolder
    start: Path  # the model that the stage begins with
    spec: ModelSpec
    question_ids: Sequence[str]
    rows: Rows
    tokens: Tokens
    planner: Planner
    questions: Mapping[str, Question]  # by id
    lock: DeviceLock | None  # of this node's devices, on its first rank, where engines share them
    start_weights: list[list[Tensor]]  # of each chunk, on the host; [] unless a KL term asks for them
    old: Logprobs = field(default_factory=dict)  # log-probs under the policy that an answer's ratio divides by
    reference: Logprobs = field(default_factory=dict)  # log-probs under the starting model

    @property
    def rl(self) -> Rl:
        """The section [rl]."""
        return self.config.on_policy

    @property
    def folder(self) -> RlFolder:
        """RUN/rl."""
        return self.run.rl

    def batches(self, plan: Plan, update: Update) -> list[PackedBatch]:
        """This rank's micro batches of an update."""
        samples = [self.tokens.sample(plan.answers[one.id], one.advantage, one.kl) for one in update.samples]
        samples += [self.tokens.sample(plan.answers[name], self.rl.rethink.weight) for name in update.auxiliary]
        names = {one.id for one in update.samples}
        recorded = {name: plan.answers[name].logprobs for name in names}
        logprobs: dict[str, Any] = {"rollout_logprobs": recorded}
        if self.rl.old == "engine":
            logprobs["behaviour_logprobs"] = recorded
        elif self.rl.measures_old:
            logprobs["behaviour_logprobs"] = self.old
        if self.rl.needs_reference:
            logprobs["reference_logprobs"] = self.reference
        return list(self.rows.batches(samples, logprobs))


def build_stage(config: Config, run: RunFolder, groups: Groups, backend: Backend) -> StageJob:
    """Build the model and fill it with the starting weights, unless a checkpoint will do that.

    Raises SophiaError or UsageError: no starting model, no questions, an impossible layout.
    """
    view, rl = config.rl_view(), config.on_policy
    start = rl_start(config, run)
    spec = ModelSpec.from_model_dir(start)
    reader = Reader.of_model(start, config, run)
    questions = read_stage_questions(config, run)
    chunks = lvlm.build(spec, view, groups, backend)
    begins = not list_checkpoints(run.rl.checkpoints) or read_version(run.rl.versions, 0) is None
    if begins or rl.needs_reference:
        load_hf(chunks, start, spec, groups)
    start_weights = [
        [parameter.detach().to("cpu", copy=True) for parameter in chunk.parameters()] if rl.needs_reference else []
        for chunk in chunks
    ]
    wrapped = wrap_ddp(chunks, view.train)
    rows = Rows(view, reader, groups.data_rank, groups.data_size, load_pixels=groups.is_first_stage)
    tokens = Tokens(reader, questions, system_prompt(config), rows.longest, rl)
    first_of_node = int(os.environ.get("LOCAL_RANK", dist.get_rank())) == 0
    return StageJob(
        config=view,
        groups=groups,
        backend=backend,
        chunks=wrapped,
        optimizer=build_optimizer(wrapped, view.train, view.fp8.recipe if view.fp8.native else None),
        checkpoints=Checkpoints(
            run.rl.checkpoints, view.train.keep_checkpoints, asynchronous=view.train.save_asynchronously
        ),
        steps=rl.batches * rl.updates_per_batch,
        own_term=load_function(config, run, "rl.objective.loss"),
        run=run,
        start=start,
        spec=spec,
        question_ids=list(questions),
        rows=rows,
        tokens=tokens,
        planner=Planner(config, run.rl, tokens),
        questions=questions,
        lock=DeviceLock.of(run) if rl.placement == "colocated" and first_of_node else None,
        start_weights=start_weights,
    )


@torch.no_grad()
def swap_in(job: StageJob) -> list[list[Tensor]]:
    """Put the starting weights in place of the present ones, which are returned (on the host)."""
    now = []
    for chunk, weights in zip(job.chunks, job.start_weights, strict=True):
        parameters = list(chunk.module.parameters())
        now.append([parameter.detach().to("cpu", copy=True) for parameter in parameters])
        for parameter, value in zip(parameters, weights, strict=True):
            parameter.copy_(value)
    return now


@torch.no_grad()
def swap_back(job: StageJob, weights: list[list[Tensor]]) -> None:
    """Undo `swap_in`."""
    for chunk, values in zip(job.chunks, weights, strict=True):
        for parameter, value in zip(chunk.module.parameters(), values, strict=True):
            parameter.copy_(value)


def move_out(job: StageJob) -> None:
    """Leave the device to the engines: parameters and optimizer state to the host (on a CPU they stay)."""
    if job.backend.kind != "cuda":
        return
    for chunk in job.chunks:
        for buffer in chunk.buffers:
            buffer.offload_to_cpu()
    job.optimizer.offload_to_cpu()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def move_in(job: StageJob) -> None:
    """Undo `move_out`; nothing if the state is on the device."""
    if job.backend.kind != "cuda":
        return
    for chunk in job.chunks:
        for buffer in chunk.buffers:
            buffer.reload_from_cpu()
    job.optimizer.restore_from_cpu()
    torch.cuda.synchronize()

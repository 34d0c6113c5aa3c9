"""Process groups of a layout, and the checks that refuse an impossible layout before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

from sophia_mcore.config.schema import Parallel
from sophia_mcore.errors import UsageError
from sophia_mcore.parallel.backend import Backend

if TYPE_CHECKING:
    from sophia_mcore.model.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """This process's place in the layout. `collection` is what megatron-core's modules take."""

    parallel: Parallel
    collection: ProcessGroupCollection
    tensor_rank: int
    pipeline_rank: int
    context_rank: int
    data_rank: int
    data_size: int

    @property
    def tensor_size(self) -> int:
        return self.parallel.tensor

    @property
    def pipeline_size(self) -> int:
        return self.parallel.pipeline

    @property
    def context_size(self) -> int:
        return self.parallel.context

    @property
    def is_first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline_size - 1

    @property
    def tensor(self) -> dist.ProcessGroup:
        return self.collection.tp

    @property
    def context(self) -> dist.ProcessGroup:
        return self.collection.cp

    @property
    def data(self) -> dist.ProcessGroup:
        """Ranks that hold the same parameters and see different rows."""
        return self.collection.dp

    @property
    def data_and_context(self) -> dist.ProcessGroup:
        """Ranks that hold the same parameters: gradients are summed over these."""
        return self.collection.dp_cp


def initialize(
    parallel: Parallel, backend: Backend, timeout_seconds: float = 1800.0, seed: int = 0, gloo_copies: bool = True
) -> Groups:
    """Join the process group (torchrun's environment, unless the caller did already) and build the layout's groups.

    Call inside `backend.adapt()`. `gloo_copies`: further gloo groups, which saving the distributed optimizer uses.

    Raises:
        UsageError: the number of processes does not fit the layout.
    """
    timeout = timedelta(seconds=timeout_seconds)
    if not dist.is_initialized():
        dist.init_process_group(backend.distributed, timeout=timeout)
    world, ranks = dist.get_world_size(), parallel.tensor * parallel.pipeline * parallel.context
    if world % ranks:
        raise UsageError(
            f"{world} processes do not fit parallel.tensor x pipeline x context = "
            f"{parallel.tensor} x {parallel.pipeline} x {parallel.context} = {ranks}"
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
        context_parallel_size=parallel.context,
        distributed_timeout_minutes=max(1, round(timeout_seconds / 60)),
        create_gloo_process_groups=gloo_copies,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return Groups(
        parallel=parallel,
        collection=ProcessGroupCollection.use_mpu_process_groups(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        context_rank=parallel_state.get_context_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
    )


def shutdown() -> None:
    """Leave all groups."""
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def check_layout(
    spec: ModelSpec, parallel: Parallel, sequence_length_tokens: int | None = None, fp8: bool = False
) -> None:
    """Refuse, with the nearest fix, a layout that the model cannot be cut into. Pure; needs no process group.

    Raises:
        UsageError: one line with the setting, its value and what would fit.
    """
    language = spec.language
    heads, kv_heads, tensor = language.num_attention_heads, language.num_key_value_heads, parallel.tensor
    if heads % tensor:
        raise UsageError(f"parallel.tensor = {tensor} does not divide {heads} attention heads; {_divisors(heads)} do")
    if kv_heads % tensor and tensor % kv_heads:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
        raise UsageError(
            f"parallel.tensor = {tensor} fits no even share of {kv_heads} key-value heads; "
            f"{', '.join(map(str, fitting))} do"
        )
    if language.intermediate_size % tensor:
        raise UsageError(f"parallel.tensor = {tensor} does not divide intermediate_size = {language.intermediate_size}")
    if parallel.sequence_parallel and tensor == 1:
        raise UsageError("parallel.sequence_parallel needs parallel.tensor > 1")
    layers_per_stage(language.num_layers, parallel)
    check_sequence_length(parallel, sequence_length_tokens, fp8)


def layers_per_stage(layers: int, parallel: Parallel) -> list[list[int]]:
    """Language layers of each [pipeline rank][model chunk], as counts.

    >>> layers_per_stage(8, Parallel(pipeline=2, virtual_pipeline=2))
    [[2, 2], [2, 2]]
    >>> layers_per_stage(7, Parallel(pipeline=2, layers_on_first_stage=3))
    [[3], [4]]

    Raises:
        UsageError: the layers do not fit the stages.
    """
    stages, chunks = parallel.pipeline, parallel.virtual_pipeline or 1
    first, last = parallel.layers_on_first_stage, parallel.layers_on_last_stage
    if stages == 1:
        if parallel.virtual_pipeline is not None:
            raise UsageError("parallel.virtual_pipeline needs parallel.pipeline > 1")
        if first is not None or last is not None:
            raise UsageError("parallel.layers_on_first_stage and layers_on_last_stage need parallel.pipeline > 1")
        return [[layers]]
    counts: list[int | None] = [None] * stages
    counts[0], counts[-1] = first, last
    free = [i for i, count in enumerate(counts) if count is None]
    rest = layers - (first or 0) - (last or 0)
    if rest < len(free) or (free and rest % len(free)) or (not free and rest):
        raise UsageError(
            f"{layers} language layers do not fit parallel.pipeline = {stages} with layers_on_first_stage = {first}, "
            f"layers_on_last_stage = {last}: {rest} layers are left for {len(free)} stages"
        )
    whole = [count if count is not None else rest // len(free) for count in counts]
    uneven = [count for count in whole if count % chunks]
    if uneven:
        raise UsageError(f"parallel.virtual_pipeline = {chunks} does not divide a stage of {uneven[0]} language layers")
    return [[count // chunks] * chunks for count in whole]


def check_sequence_length(parallel: Parallel, sequence_length_tokens: int | None, fp8: bool = False) -> None:
    """A row must divide into context parallelism's 2 x CP slices, and those into sequence parallelism's shares."""
    unit = row_multiple(parallel, fp8)
    if sequence_length_tokens is not None and sequence_length_tokens % unit:
        nearest = max(unit, sequence_length_tokens // unit * unit)
        raise UsageError(
            f"batch.sequence_length_tokens = {sequence_length_tokens} is not a multiple of {unit}, which "
            f"parallel.context = {parallel.context}{', sequence parallelism' if parallel.sequence_parallel else ''}"
            f"{', FP8' if fp8 else ''} need; nearest: {nearest}"
        )


def sequence_multiple(parallel: Parallel) -> int:
    """Every packed sequence's length must be a multiple of this (context parallelism cuts each into 2 x CP)."""
    return 2 * parallel.context if parallel.context > 1 else 1


def row_multiple(parallel: Parallel, fp8: bool = False) -> int:
    """A whole row's length must be a multiple of this; FP8 products need multiples of 16 tokens on each rank."""
    per_rank = (parallel.tensor if parallel.sequence_parallel else 1) * (16 if fp8 else 1)
    return math.lcm(sequence_multiple(parallel), parallel.context * per_rank)


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)

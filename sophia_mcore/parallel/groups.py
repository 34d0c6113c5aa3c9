"""Process groups of a parallel layout."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

from sophia_mcore.config.schema import Parallel
from sophia_mcore.errors import UsageError
from sophia_mcore.parallel.backend import Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The ranks and process groups of this process. `collection`: the groups as megatron-core's modules take them."""

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
        """Group of the ranks that hold the same parameters and process different rows."""
        return self.collection.dp

    @property
    def data_and_context(self) -> dist.ProcessGroup:
        """Group of all ranks that hold the same parameters. Gradients are summed over it."""
        return self.collection.dp_cp


def initialize(
    parallel: Parallel, backend: Backend, timeout_seconds: float = 1800.0, seed: int = 0, gloo_copies: bool = True
) -> Groups:
    """Initialise torch.distributed from torchrun's environment, if that is not done yet, and make the layout's groups.

    Call this inside `backend.adapt()`. `gloo_copies`: also make gloo groups, which are needed to save the distributed
    optimizer.

    Raises:
        UsageError: the number of processes does not fit the layout.
    """
    timeout = timedelta(seconds=timeout_seconds)
    if not dist.is_initialized():
        dist.init_process_group(backend.distributed, timeout=timeout)
    world = dist.get_world_size()
    if world % parallel.model_ranks:
        raise UsageError(
            f"{world} processes do not fit parallel.tensor x pipeline x context = "
            f"{parallel.tensor} x {parallel.pipeline} x {parallel.context} = {parallel.model_ranks}"
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
    """Destroy all process groups."""
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()

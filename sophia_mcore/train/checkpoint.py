"""Save and load the whole training state through Megatron's distributed checkpointing, at any layout.

In a checkpoint: model parameters, optimizer state (in the shape of the parameters, so that any layout can load
it), random number generators of each rank, and the step, which is also the data cursor. The random states are
taken over only at the layout that wrote them; everything else loads at any layout.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies import torch as torch_strategies
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch.distributed import checkpoint as torch_checkpoint
from torch.distributed.checkpoint.api import CheckpointException

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.layout import step_name
from sophia_mcore.train import checkpoint_folder
from sophia_mcore.train.optim import require_current_parameters

_FULL_BYTES = 16 << 20  # with less than this free a failed write is put down to the full disk
_FAILURES = (Exception, CheckpointException)  # torch's is not an Exception
_MISTAKES = (AttributeError, KeyError, NameError, TypeError)  # of a program: no other checkpoint would help
# fully_reshardable: optimizer state in parameter shape; the other formats cannot change the layout, or raise.
METADATA: Mapping[str, Any] = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
    "singleton_local_shards": False,
}


class Checkpoints:
    """The checkpoints of one training run.

    Every method is called by all ranks together; ``folder`` is on a filesystem that all of them see. With
    ``asynchronous`` a save copies the state to host memory and writes it in a thread; `finish` makes it visible.
    """

    def __init__(self, folder: Path, keep: int, *, asynchronous: bool = False) -> None:
        self.folder = folder
        self.keep = keep
        # collectives of the thread must not mix with those of the training, hence a group of its own
        self._group = dist.new_group(backend="gloo") if asynchronous else None
        self._pending: tuple[int, AsyncRequest] | None = None

    def save(self, step: int, chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> None:
        """Write the state after ``step`` updates and prune older checkpoints.

        Raises SophiaError on every rank when any rank cannot write (full disk); older checkpoints stay.
        """
        self.finish()
        require_current_parameters(chunks)
        temporary = self._temporary(step)
        on_rank_zero(lambda: checkpoint_folder.begin(self.folder, step), f"cannot make {temporary}")
        state = _sharded_state(chunks, optimizer, is_loading=False)
        strategy = PlainSaveStrategy("torch_dist", 1)
        strategy.group = self._group
        with _write_errors(temporary):
            request = dist_checkpointing.save(
                state,
                str(temporary),
                strategy,
                content_metadata=dict(METADATA),
                async_sharded_save=self._group is not None,
            )
        if request is not None:
            self._pending = (step, request)
        else:
            self._commit(step)

    @property
    def writing(self) -> bool:
        """Whether this rank's thread still writes."""
        return self._pending is not None and not self._pending[1].finalize_fns[0].done.is_set()

    def finish(self) -> None:
        """Wait for the save under way, if there is one, and make it visible."""
        if self._pending is None:
            return
        (step, request), self._pending = self._pending, None
        with _write_errors(self._temporary(step)):
            for finalize in request.finalize_fns:
                finalize()
        self._commit(step)

    def _temporary(self, step: int) -> Path:
        return self.folder / f".tmp-{step_name(step)}"

    def _commit(self, step: int) -> None:
        layout, temporary = current_layout(), self._temporary(step)
        digests = _digests(temporary)
        on_rank_zero(
            lambda: checkpoint_folder.commit(temporary, step, layout, self.keep, digests),
            f"cannot complete {self.folder / step_name(step)}",
        )

    def load_newest(self, chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> int:
        """Load the newest intact checkpoint and return its step; 0 when there is none.

        A broken one is passed over with a warning. Raises SophiaError when there are some, but none can be loaded.
        """
        on_rank_zero(lambda: checkpoint_folder.clean(self.folder), f"cannot clean {self.folder}")
        candidates = on_rank_zero(
            lambda: [_inspect(path) for path in checkpoint_folder.list_checkpoints(self.folder)],
            f"cannot read {self.folder}",
        )
        for path, manifest, problem in candidates:
            problem = problem or self._load(path, manifest, chunks, optimizer)
            if problem is None:
                return manifest.step
            if dist.get_rank() == 0:
                print(f"warning: {problem}; trying the one before", file=sys.stderr, flush=True)
        if candidates:
            raise SophiaError(f"{self.folder}: no intact checkpoint; delete the folder to train from the start")
        return 0

    def _load(
        self,
        path: Path,
        manifest: checkpoint_folder.Manifest,
        chunks: Sequence[DistributedDataParallel],
        optimizer: MegatronOptimizer,
    ) -> str | None:
        """Load from ``path``; a problem on any rank is returned on all of them."""
        problem = checkpoint_folder.changed_file(path, manifest, dist.get_rank(), dist.get_world_size())
        if problem := _first(_gathered(problem)):
            return problem
        same_layout = dict(manifest.layout) == current_layout()
        try:
            request = _sharded_state(chunks, optimizer, is_loading=True)
            if not same_layout:
                del request["random"]
            state = dist_checkpointing.load(request, str(path), validate_access_integrity=False)
            for index, chunk in enumerate(chunks):
                chunk.module.load_state_dict(state[_model_key(index)])
            optimizer.load_state_dict(state["optimizer"])
            if same_layout:
                _set_random_state(state["random"])
        except _FAILURES as error:
            if isinstance(_cause(error), _MISTAKES):
                raise
            problem = f"{path}: cannot be loaded: {_first_line(error)}"
        return _first(_gathered(problem))


class PlainSaveStrategy(torch_strategies.TorchDistSaveShardedStrategy):
    """The same files as Megatron's torch_dist strategy, written by this process itself.

    Megatron's writer starts a manager process and forks writers for every save, which costs seconds and leaves
    processes behind when a rank dies; torch's own writer needs neither.
    """

    group: dist.ProcessGroup | None = None  # of the asynchronous writer

    def save(self, sharded_state_dict: Any, checkpoint_dir: Path | str) -> None:
        """Write this rank's shards into ``checkpoint_dir`` (collective)."""
        self._write(self._tensors(sharded_state_dict), checkpoint_dir)

    def async_save(self, sharded_state_dict: Any, checkpoint_dir: Path | str, *_: Any) -> AsyncRequest:
        """The same in a thread, from a copy in host memory; its first finalize function waits for the thread.

        megatron-core 0.19 also names a strategy of its own, which this one replaces.
        """
        state = self._tensors(sharded_state_dict, copy=True)
        return AsyncRequest(None, (), [_Writing(lambda: self._write(state, checkpoint_dir))])

    def _tensors(self, sharded_state_dict: Any, copy: bool = False) -> Any:
        by_key, _, _ = torch_strategies._replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        if copy:
            for parts in by_key.values():
                for part in parts:
                    if torch.is_tensor(part.data):
                        part.data = part.data.detach().to("cpu", copy=True)
        return torch_strategies.mcore_to_pyt_state_dict(by_key, False)

    def _write(self, state: Any, checkpoint_dir: Path | str) -> None:
        torch_checkpoint.save(
            state,
            storage_writer=torch_checkpoint.FileSystemWriter(checkpoint_dir, sync_files=True),
            planner=torch_strategies.MCoreSavePlanner(
                dedup_replicated_tensors=not self.keep_only_main_replica, flatten_state_dict=False
            ),
            process_group=self.group,
        )


class _Writing:
    """A writer thread; calling it waits for the end and raises what the thread raised."""

    def __init__(self, write: Callable[[], None]) -> None:
        self.done = threading.Event()
        self._error: BaseException | None = None
        self._write = write
        # not a daemon: the process must not end in the middle of a file
        self._thread = threading.Thread(target=self._run, name="checkpoint")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as error:
            self._error = error
        finally:
            self.done.set()

    def __call__(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def _digests(folder: Path) -> dict[str, str]:
    """Digest of every file as it can be read back, each rank having read its share. Raises SophiaError on all ranks."""
    mine: dict[str, str] | str
    try:
        mine = checkpoint_folder.digests(folder, dist.get_rank(), dist.get_world_size())
    except OSError as error:
        mine = f"{folder}: cannot be read back: {error}"
    found: dict[str, str] = {}
    for part in _gathered(mine):
        if isinstance(part, str):
            raise SophiaError(part)
        found |= part
    return found


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Turn a failed write into a SophiaError, and remove the partial checkpoint, so that it does not fill the disk."""
    try:
        yield
    except _FAILURES as error:
        if isinstance(_cause(error), _MISTAKES):
            raise
        free = shutil.disk_usage(folder.parent).free  # torch's message does not say it
        reason = f"no space left on the disk ({free >> 20:,} MiB free)" if free < _FULL_BYTES else _first_line(error)
        shutil.rmtree(folder, ignore_errors=True)
        raise SophiaError(f"{folder}: checkpoint not written: {reason}") from error


def _gathered(mine: Any) -> list[Any]:
    """What every rank has, in rank order."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def _first(problems: list[str | None]) -> str | None:
    return next((problem for problem in problems if problem is not None), None)


def current_layout() -> dict[str, int]:
    """Sizes of the parallel groups of this job, and whether its devices are GPUs."""
    return {
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual_pipeline": parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1,
        "context": parallel_state.get_context_parallel_world_size(),
        "data": parallel_state.get_data_parallel_world_size(),
        "cuda": int(dist.get_backend() == "nccl"),  # random states of the two kinds of devices differ
    }


def _sharded_state(
    chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer, *, is_loading: bool
) -> dict[str, Any]:
    metadata = dict(METADATA)
    state: dict[str, Any] = {
        _model_key(index): chunk.module.sharded_state_dict(metadata=metadata) for index, chunk in enumerate(chunks)
    }
    state["optimizer"] = optimizer.sharded_state_dict(dict(state), is_loading=is_loading, metadata=metadata)
    state["random"] = ShardedObject("random", _random_state(), (dist.get_world_size(),), (dist.get_rank(),))
    return state


def _model_key(index: int) -> str:
    return f"model{index}"


def _random_state() -> dict[str, Any]:
    return {"torch": torch.get_rng_state(), "tracker": get_cuda_rng_tracker().get_states()}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    get_cuda_rng_tracker().set_states(state["tracker"])


def _inspect(path: Path) -> tuple[Path, checkpoint_folder.Manifest | None, str | None]:
    try:
        return path, checkpoint_folder.read_manifest(path), None
    except SophiaError as error:
        return path, None, str(error)


def on_rank_zero(work: Any, what: str) -> Any:
    """Result of ``work`` done by rank 0, on every rank; its failure is raised on every rank."""
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except (OSError, SophiaError) as error:
            outcome[1] = f"{what}: {error}"
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise SophiaError(outcome[1])
    return outcome[0]


def _cause(error: BaseException) -> BaseException:
    """What failed on the first rank that failed, where torch has collected the ranks' errors."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def _first_line(error: BaseException) -> str:
    if isinstance(error, CheckpointException) and error.failures:
        return f"rank {next(iter(error.failures))}: {_first_line(_cause(error))}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

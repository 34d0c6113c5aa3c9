"""The exchange of gradients and parameters that CUDA gets, on gloo ranks: what is saved is what was trained.

Two of these faults need gradient buffers of several buckets. A tiny model has one unless its size is set.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from torch.testing._internal.distributed.fake_pg import FakeStore

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config, Parallel
from sophia_mcore.model import lvlm
from sophia_mcore.parallel import backend as backends
from sophia_mcore.parallel import groups as groups_module
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.train import optim
from sophia_mcore.train.checkpoint import Checkpoints
from sophia_mcore.train.checkpoint_folder import list_checkpoints
from tests.support import layouts, pretended_cuda, train_world
from tests.support.harness import run, run_layout
from tests.support.real_models import MODELS

ROOT = Path(__file__).resolve().parents[2]
MASTER = "optimizer.state.param."
SMALL = 3000  # elements of a bucket: a dozen in the tiny model
CUDA = {"transformer_engine": False, "fused_kernels": False}  # what needs a compiler or a device


def session(config: Config, folder: RunFolder, bucket: int) -> bool:
    """Train on this rank as under CUDA, with small buckets wherever there would be several."""
    real = DistributedDataParallelConfig
    optim.DistributedDataParallelConfig = functools.partial(real, bucket_size=bucket)  # a forked rank: nobody else sees
    with pretended_cuda.pretended(), pretended_cuda.selected(pretended_cuda.backend(**CUDA)):
        return train_world.train(config, folder)


def newest(folder: RunFolder) -> dict[str, torch.Tensor]:
    return train_world.tensors(list_checkpoints(folder.round(0).checkpoints)[0])


@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [(2, {}), (2, {"context": 2}), (4, {"pipeline": 2})],
    ids=["dp2", "cp2", "pp2 dp2"],
)
def test_a_session_under_cuda_saves_what_it_trained(tmp_path: Path, ranks: int, parallel: dict[str, int]) -> None:
    policy = train_world.make_policy(tmp_path / "policy")
    sections = {"train": {"dtype": "bfloat16"}, "parallel": {**parallel, "processes": ranks}}
    folders = []
    for name in ("plain", "cuda"):
        config, folder = train_world.make_run(tmp_path / name, policy, **sections)
        work = functools.partial(session, bucket=SMALL) if name == "cuda" else train_world.train
        assert run(work, ranks, config, folder) == [True] * ranks
        folders.append(folder)
    assert train_world.losses(folders[1]) == pytest.approx(train_world.losses(folders[0]), rel=2e-2)
    saved, plain = newest(folders[1]), newest(folders[0])
    assert saved.keys() == plain.keys()
    _assert_weights_are_the_masters(saved)


def _assert_weights_are_the_masters(saved: dict[str, torch.Tensor]) -> None:
    """Every trained parameter is its fp32 master weight, rounded: of the same update, and saved at the same place."""
    masters = {n.removeprefix(MASTER): value for n, value in saved.items() if n.startswith(MASTER)}
    assert len(masters) > 10
    assert [n for n, value in masters.items() if not torch.equal(saved[n], value.to(saved[n].dtype))] == []


def overlapped(groups: Any, backend: Any, folder: Path) -> str:
    """Save after an update whose parameters are still to be gathered; returns the error, or ""."""
    spec, config = layouts.tiny_spec(), layouts.tiny_config(groups.parallel, dtype="bfloat16")
    chunks = lvlm.build(spec, config, groups, backend)
    layouts.fill(chunks, spec)
    real = DistributedDataParallelConfig
    settings = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_size": 10**9}
    optim.DistributedDataParallelConfig = lambda **given: real(**{**given, **settings})
    wrapped = optim.wrap_ddp(chunks, config.train)
    optim.DistributedDataParallelConfig = real
    optimizer = optim.build_optimizer(wrapped, config.train)
    optim.set_learning_rate(optimizer, 0.1)
    for buffer in wrapped[0].buffers:
        buffer.grad_data.fill_(1.0)
    wrapped[0].finish_grad_sync()
    optimizer.step()
    Checkpoints(folder, 2).save(1, wrapped, optimizer)
    return ""


def test_parameters_that_are_gathered_late_are_gathered_before_they_are_saved(tmp_path: Path) -> None:
    run_layout(overlapped, Parallel(), tmp_path, data=2)
    _assert_weights_are_the_masters(train_world.tensors(list_checkpoints(tmp_path)[0]))


def test_optimizer_state_behind_padding_is_not_saved() -> None:
    def padded(groups: Any, backend: Any) -> str:
        chunks = lvlm.build(layouts.tiny_spec(), layouts.tiny_config(groups.parallel), groups, backend)
        real = DistributedDataParallelConfig
        optim.DistributedDataParallelConfig = lambda **given: real(
            **{**given, "overlap_grad_reduce": True, "bucket_size": SMALL}
        )
        try:
            optim.require_current_parameters(optim.wrap_ddp(chunks, layouts.tiny_config(groups.parallel).train))
        except ValueError as error:
            return str(error)
        return ""

    assert "padded between its buckets" in run_layout(padded, Parallel(), data=2)[0]


def buckets(config: Config, spec: Any) -> list[int]:
    """Buckets of each gradient buffer of the first rank, on meta tensors."""
    parallel = config.parallel
    torch.distributed.destroy_process_group()
    torch.distributed.init_process_group("fake", rank=0, world_size=parallel.world_size, store=FakeStore())
    backend = backends.select(kind="cpu")
    with backend.adapt():
        torch.cuda.current_device = lambda: torch.device("meta")
        groups = groups_module.initialize(parallel, backend, gloo_copies=False)
        with torch.device("meta"):
            wrapped = optim.wrap_ddp(lvlm.build(spec, config, groups, backend), config.train)
    optim.require_current_parameters(wrapped)
    return [len(buffer.buckets) for chunk in wrapped for buffer in chunk.buffers]


@pytest.mark.parametrize("data", [3, 5])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_no_example_has_padding_between_its_buckets(name: str, data: int) -> None:
    config = load_config(ROOT / "examples" / name / "run.toml")
    parallel = config.parallel.model_copy(update={"processes": config.parallel.model_ranks * data})
    train = config.train.model_copy(update={"train_vision_tower": data == 3, "train_projector": data == 3})
    fp8 = config.fp8.model_copy(update={"recipe": "none"})
    changed = config.model_copy(update={"parallel": parallel, "train": train, "fp8": fp8})
    (found,) = run(buckets, 1, changed, MODELS[name])
    assert set(found) == {1}

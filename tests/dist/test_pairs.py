"""Sums over two ranks without gloo: the same bits, and the same end when a rank is gone."""

from __future__ import annotations

from datetime import timedelta
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sophia_mcore.config.schema import Parallel
from sophia_mcore.parallel.pairs import Pairs
from sophia_mcore.train.worker import lost_peer
from tests.support.harness import run, run_layout

OPS = (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64)


def values(dtype: torch.dtype) -> list[Tensor]:
    """Tensors of this rank: large ones that no socket holds at once, a number, an empty and a transposed one."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    made = [torch.randn(shape, generator=generator) * 100 for shape in ((511, 1290), (3,), (), (0,), (40, 7))]
    return [*(tensor.to(dtype) for tensor in made[:-1]), made[-1].to(dtype).T]


def differences(pairs: Pairs, group: dist.ProcessGroup | None) -> list[str]:
    """What `pairs` adds up to other bits than gloo."""
    found = []
    for dtype, op, at_once in product(DTYPES, OPS, (True, False)):
        for tensor in values(dtype):
            ours, gloo = tensor.clone(), tensor.clone()
            dist.all_reduce(gloo, op=op, group=group)
            work = pairs.all_reduce(ours, op=op, group=group, async_op=not at_once)
            if not at_once:
                work.wait()
            if not torch.equal(ours, gloo):
                found.append(f"{dtype} {op} {tuple(tensor.shape)}")
    return found


def compare(size: int) -> tuple[list[str], list[bool]]:
    """Differences in a group of so many ranks, and whether each group of two is connected."""
    pairs = Pairs(dist.all_reduce)
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, dist.get_world_size(), size)]
    found = [line for group in groups if dist.get_rank(group) >= 0 for line in differences(pairs, group)]
    connected = [peer is not None for peer in pairs._peers.values()]
    pairs.close()
    return found, connected


@pytest.mark.parametrize(("ranks", "size", "connected"), [(2, 1, []), (4, 2, [True]), (3, 3, [])])
def test_the_same_bits_as_gloo(ranks: int, size: int, connected: list[bool]) -> None:
    assert run(compare, ranks, size) == [([], connected)] * ranks


def test_every_sum_of_the_model_goes_through_the_pair() -> None:
    def work(groups: object, backend: object) -> str:
        return dist.all_reduce.__qualname__

    assert run_layout(work, Parallel(tensor=2)) == ["Pairs.all_reduce"] * 2
    assert dist.all_reduce.__qualname__ == "all_reduce"


def leave() -> str:
    """Rank 1 leaves after one sum."""
    pairs, tensor = Pairs(dist.all_reduce), torch.ones(3)
    pairs.all_reduce(tensor)
    if dist.get_rank() == 1:
        return ""
    with pytest.raises(RuntimeError) as caught:
        for _ in range(2):  # what is sent first, the socket may still take
            pairs.all_reduce(tensor)
    return f"{lost_peer(caught.value)} {caught.value}"


def test_a_rank_that_is_gone() -> None:
    assert run(leave, 2)[0].startswith("True Connection closed by peer")


def keep_silent() -> str:
    """Rank 1 does not come to the second sum."""
    group = dist.new_group(timeout=timedelta(seconds=2))
    pairs, tensor = Pairs(dist.all_reduce), torch.ones(3)
    pairs.all_reduce(tensor, group=group)
    message = ""
    if dist.get_rank() == 0:
        with pytest.raises(RuntimeError) as caught:
            pairs.all_reduce(tensor, group=group)
        message = f"{lost_peer(caught.value)} {caught.value}"
    dist.barrier()
    return message


def test_a_silent_rank_is_waited_for_as_long_as_its_group_allows() -> None:
    assert run(keep_silent, 2)[0].startswith("True Timed out waiting")

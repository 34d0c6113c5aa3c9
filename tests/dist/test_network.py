"""The check of the network before training: all there and fast, too slow, one rank that does not come."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from sophia_mcore.parallel.network import BadNode, check_network, culprit, meet
from tests.support.harness import run


def measure(floor: float) -> float | str:
    try:
        return check_network(torch.device("cpu"), 30.0, floor)
    except BadNode as error:
        return str(error)


def stay_away(late: int) -> str:
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=30))
    if dist.get_rank() == late:
        time.sleep(3)  # longer than the others wait
        return ""
    try:
        meet(group, [f"node{rank}" for rank in range(dist.get_world_size())], 1.0)
    except BadNode as error:
        return f"{error.node}: {error}"
    except RuntimeError:
        return "told by rank 0"
    return "met"


def test_bandwidth_is_measured_and_a_floor_refuses() -> None:
    assert all(isinstance(value, float) and value > 0 for value in run(measure, 3, 0.0))
    told = run(measure, 3, 1e9)
    assert len(set(told)) == 1 and "all-reduce over 3 ranks reaches" in told[0]


def test_who_did_not_come_is_named() -> None:
    told = run(stay_away, 3, 2)
    assert told[0] == "node2: node2 (rank 2) did not answer within 1 s"
    assert told[2] == ""


@pytest.mark.parametrize("slow", ["a", "b", "c", "d"])
def test_the_node_that_slow_links_share(slow: str) -> None:
    ring = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "a")]
    assert culprit([(x, y, 1.0 if slow in (x, y) else 40.0) for x, y in ring]) == slow

"""Checks before training that all ranks have started and that the network is fast enough. Errors name the bad node.

Bus bandwidth of an all-reduce is defined as in NCCL's tests: bytes / seconds x 2 (n - 1) / n.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from sophia_mcore.errors import SophiaError

_BYTES = {"cuda": 256 << 20, "cpu": 1 << 20}
_REPEATS = 5


class BadNode(SophiaError):
    """A node is missing or slow. ``node``: its name."""

    def __init__(self, message: str, node: str) -> None:
        super().__init__(message)
        self.node = node


def node_name() -> str:
    """Slurm's name of this node, or its host name outside of Slurm."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def check_network(device: torch.device, join_seconds: float, floor_gb_per_second: float) -> float:
    """Wait for all ranks and time an all-reduce; returns its bus bandwidth in GB/s (0 with one rank).

    Call this on every rank of the default group. Raises BadNode on all of them if ranks did not arrive within
    ``join_seconds``, or if the bandwidth is below the floor: then it names the node that the slowest links share.
    """
    world = dist.get_world_size()
    if world == 1:
        return 0.0
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=join_seconds))
    nodes: list[str] = [""] * world
    dist.all_gather_object(nodes, node_name(), group=group)
    meet(group, nodes, join_seconds)
    bandwidth = _all_reduce(device)
    lowest = torch.tensor([bandwidth])
    dist.all_reduce(lowest, dist.ReduceOp.MIN, group=group)
    if lowest.item() < floor_gb_per_second:
        links: list[tuple[str, str, float]] = [("", "", 0.0)] * world
        dist.all_gather_object(links, _link(device, nodes), group=group)
        node = culprit(links)
        raise BadNode(
            f"all-reduce over {world} ranks reaches {lowest.item():.3g} GB/s, less than "
            f"cluster.allreduce_floor_gb_per_second = {floor_gb_per_second:g}; slowest around {node}",
            node,
        )
    dist.destroy_process_group(group)
    return float(lowest.item())


def meet(group: dist.ProcessGroup, nodes: Sequence[str], seconds: float) -> None:
    """Wait at a barrier. Raises BadNode with the nodes of the ranks that did not arrive within ``seconds``."""
    try:
        dist.monitored_barrier(group, timedelta(seconds=seconds), wait_all_ranks=True)
    except RuntimeError as error:
        match = re.search(r"Ranks? ([\d, ]+) failed", str(error))
        missing = [int(number) for number in re.findall(r"\d+", match[1])] if match else []
        names = sorted({nodes[rank] for rank in missing if rank < len(nodes)})
        if not names:
            raise
        text = f"{', '.join(names)} (rank {', '.join(map(str, missing))}) did not answer within {seconds:g} s"
        raise BadNode(text, names[0]) from None


def culprit(links: Sequence[tuple[str, str, float]]) -> str:
    """The node that the slowest two links share. Each link is (node, node, GB/s); each node has two links.

    >>> culprit([("a", "b", 9.0), ("b", "c", 1.0), ("c", "a", 1.1)])
    'c'
    """
    between = [link for link in links if link[0] != link[1]] or list(links)
    slowest = sorted(between, key=lambda link: link[2])[:2]
    return Counter(node for link in slowest for node in link[:2]).most_common(1)[0][0]


def _all_reduce(device: torch.device) -> float:
    tensor = torch.ones(_BYTES[device.type] // 4, device=device)
    size = dist.get_world_size()
    dist.all_reduce(tensor)  # the first call makes the connections; it is not timed
    _wait(device)
    since = time.perf_counter()
    for _ in range(_REPEATS):
        dist.all_reduce(tensor)
    _wait(device)
    seconds = (time.perf_counter() - since) / _REPEATS
    return tensor.nbytes / seconds * 2 * (size - 1) / size / 1e9


def _link(device: torch.device, nodes: Sequence[str]) -> tuple[str, str, float]:
    """Exchange data with the next and the previous rank; returns (this node, next node, GB/s)."""
    rank, size = dist.get_rank(), dist.get_world_size()
    after, before = (rank + 1) % size, (rank - 1) % size
    out = torch.ones(_BYTES[device.type] // 4, device=device)
    into = torch.empty_like(out)
    since = time.perf_counter()
    works = dist.batch_isend_irecv([dist.P2POp(dist.isend, out, after), dist.P2POp(dist.irecv, into, before)])
    for work in works:
        work.wait()
    seconds = time.perf_counter() - since
    _wait(device)
    return nodes[rank], nodes[after], out.nbytes / seconds / 1e9


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

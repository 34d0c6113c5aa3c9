"""Before training: have all ranks arrived, and do they reach each other fast enough? Names the node at fault.

Bus bandwidth of an all-reduce as NCCL's tests define it: bytes / seconds x 2 (n - 1) / n.
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
    """``node`` is missing or slow."""

    def __init__(self, message: str, node: str) -> None:
        super().__init__(message)
        self.node = node


def node_name() -> str:
    """This node as Slurm calls it, else its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def check_network(device: torch.device, join_seconds: float, floor_gb_per_second: float) -> float:
    """Meet all ranks within ``join_seconds`` and time an all-reduce; returns its bus bandwidth in GB/s (0: one rank).

    Call on every rank of the default group. Raises BadNode on all of them: ranks that did not come, or a bandwidth
    below the floor with the node that the slowest links have in common.
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
    """A barrier that names missing ranks. Raises BadNode naming their nodes."""
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
    """The node that the slow links share: each link is (node, node, GB/s), each node part of two.

    >>> culprit([("a", "b", 9.0), ("b", "c", 1.0), ("c", "a", 1.1)])
    'c'
    """
    between = [link for link in links if link[0] != link[1]] or list(links)
    slowest = sorted(between, key=lambda link: link[2])[:2]
    return Counter(node for link in slowest for node in link[:2]).most_common(1)[0][0]


def _all_reduce(device: torch.device) -> float:
    tensor = torch.ones(_BYTES[device.type] // 4, device=device)
    size = dist.get_world_size()
    dist.all_reduce(tensor)  # connections are made here
    _wait(device)
    since = time.perf_counter()
    for _ in range(_REPEATS):
        dist.all_reduce(tensor)
    _wait(device)
    seconds = (time.perf_counter() - since) / _REPEATS
    return tensor.nbytes / seconds * 2 * (size - 1) / size / 1e9


def _link(device: torch.device, nodes: Sequence[str]) -> tuple[str, str, float]:
    """Exchange with the next and the previous rank at once; the speed of the link to the next."""
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

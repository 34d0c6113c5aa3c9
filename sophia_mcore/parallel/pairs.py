"""Sums over two ranks of one machine, sent through a Unix socket.

gloo needs five times as much CPU time for a small tensor, most of it to hand the work to a thread and to wait for it.
The sum of two numbers has no order: the result has the same bits.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_COMBINE: dict[Any, Callable[..., Tensor]] = {dist.ReduceOp.SUM: torch.add, dist.ReduceOp.MAX: torch.maximum}
_DTYPES = (torch.float32, torch.float64, torch.int32, torch.int64)
AllReduce = Callable[..., Any]


class Done:
    """What an asynchronous collective returns that was done at once."""

    def wait(self) -> bool:
        return True


class Pairs:
    """Sums of the groups that have two ranks on this machine; gloo's for all others.

    Args:
        gloo: `torch.distributed.all_reduce`.
    """

    def __init__(self, gloo: AllReduce) -> None:
        self._gloo = gloo
        self._peers: dict[dist.ProcessGroup, socket.socket | None] = {}

    def all_reduce(
        self,
        tensor: Tensor,
        op: Any = dist.ReduceOp.SUM,
        group: dist.ProcessGroup | None = None,
        async_op: bool = False,
    ) -> Any:
        """As `torch.distributed.all_reduce`. A group of one rank has its sum already.

        Raises RuntimeError when the other rank is gone, or silent for longer than the group's timeout.
        """
        group = dist.group.WORLD if group is None else group
        if not isinstance(group, dist.ProcessGroup) or group.size() > 2 or op not in _COMBINE:
            return self._gloo(tensor, op=op, group=group, async_op=async_op)
        if group.size() == 2 and tensor.numel():
            peer = self._peer(group)
            if peer is None or tensor.dtype not in _DTYPES:
                return self._gloo(tensor, op=op, group=group, async_op=async_op)
            with _peer_errors():
                _combine(tensor.detach(), _COMBINE[op], peer, group.rank())
        return Done() if async_op else None

    def close(self) -> None:
        """Close the connections."""
        for peer in self._peers.values():
            if peer is not None:
                peer.close()
        self._peers.clear()

    def _peer(self, group: dist.ProcessGroup) -> socket.socket | None:
        """The connection to the group's other rank; None where there is none, on both ranks."""
        if group not in self._peers:
            self._peers[group] = self._connect(group)
        return self._peers[group]

    def _connect(self, group: dist.ProcessGroup) -> socket.socket | None:
        """Rank 0 listens in a folder that only its user can enter; rank 1 finds it there, if it is on this machine."""
        if dist.get_backend(group) != "gloo":
            return None
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(_timeout(group).total_seconds())
        with tempfile.TemporaryDirectory(prefix="sophia-") as folder, contextlib.ExitStack() as listening:
            offer = [str(Path(folder) / "ranks")]
            if group.rank() == 0:
                listener = listening.enter_context(peer)
                with contextlib.suppress(OSError):  # a path that is too long: rank 1 will not find it
                    listener.bind(offer[0])
                    listener.listen(1)
            dist.broadcast_object_list(offer, group=group, group_src=0)
            found = [True]
            if group.rank() == 1:
                try:
                    peer.connect(offer[0])
                except OSError:  # another machine
                    found = [False]
            dist.broadcast_object_list(found, group=group, group_src=1)
            if not found[0]:
                peer.close()
                return None
            if group.rank() == 0:
                peer, _ = listener.accept()
                peer.settimeout(listener.gettimeout())
        return peer


def _timeout(group: dist.ProcessGroup) -> timedelta:
    """How long a collective of the group may wait."""
    return group._get_backend(torch.device("cpu")).options._timeout


def _combine(tensor: Tensor, combine: Callable[..., Tensor], peer: socket.socket, rank: int) -> None:
    """Rank 1 sends its values and gets the result, which rank 0 makes: both have the same bits."""
    own = tensor.contiguous()
    if rank == 0:
        other = torch.empty_like(own)
        _receive(peer, other)
        combine(own, other, out=own)
        peer.sendall(_bytes(own))
    else:
        peer.sendall(_bytes(own))
        _receive(peer, own)
    if own is not tensor:
        tensor.copy_(own)


def _receive(peer: socket.socket, tensor: Tensor) -> None:
    left = _bytes(tensor)
    while left:
        count = peer.recv_into(left)
        if count == 0:
            raise ConnectionResetError
        left = left[count:]


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).numpy().view("uint8").data


@contextlib.contextmanager
def _peer_errors() -> Iterator[None]:
    """The errors of a socket in gloo's words, by which `train.worker` knows that another rank is gone."""
    try:
        yield
    except TimeoutError as error:
        raise RuntimeError("Timed out waiting for the other rank of the pair") from error
    except OSError as error:
        raise RuntimeError("Connection closed by peer: the other rank of the pair") from error

"""Writes tensors whose columns are cut among tensor-parallel ranks, in whole rows.

A rank that wrote its part of each row would make a call for some KiB, four times as dear as the same bytes in one run,
and each of them waits for those of the other ranks. So each rank gets whole rows of its share of the tensors from the
others, 1 MiB at a time, and writes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from sophia_mcore.errors import SophiaError
from sophia_mcore.model.names import Shard
from sophia_mcore.weights.formats.stream import BUFFER_BYTES, Files, write_box
from sophia_mcore.weights.formats.tiles import Tiled
from sophia_mcore.weights.formats.torch_dtypes import TORCH_DTYPES
from sophia_mcore.weights.ops import Rectangle, matrix_shape

_AHEAD = 2  # bands that are on their way while one is written
Part = tuple[Tiled, torch.Tensor]  # a tensor, and this rank's columns of it


def is_cut_by_columns(tiled: Tiled, shard: Shard) -> bool:
    """Whether each rank of the tensor-parallel group holds as many columns, in the order of the ranks."""
    return shard.axis == 1 and shard.size > 1 and shard.blocks == 1 and matrix_shape(tiled.shape)[1] % shard.size == 0


def write_columns(parts: Sequence[Part], group: dist.ProcessGroup, files: Files) -> int:
    """Write tensors that are cut by columns; returns the bytes that this rank has written.

    All ranks of ``group`` call it together, with their columns of the same tensors in the same order. The next bands
    are on their way while one is written.

    Raises SophiaError when the disk is full or cannot be written, after its last exchange: nobody waits in vain.
    """
    problem, written = None, 0
    under_way: deque[_Exchange] = deque()
    for exchange in _exchanges(parts, group):
        under_way.append(exchange)
        while len(under_way) > (0 if exchange.last else _AHEAD):
            band = under_way.popleft()
            band.work.wait()
            try:
                written += 0 if problem is not None else band.write(files)
            except SophiaError as error:
                problem = error
    if problem is not None:
        raise problem
    return written


class _Rows:
    """One tensor of a turn, in bands of whole rows."""

    def __init__(self, tiled: Tiled, values: torch.Tensor, size: int) -> None:
        rows, self.columns = matrix_shape(tiled.shape)
        if values.numel() * size != rows * self.columns:
            raise SophiaError(f"{tiled.name}: the parameter {list(values.shape)} does not fit {list(tiled.shape)}")
        self.tiled, self.total = tiled, rows
        self.dtype = TORCH_DTYPES[tiled.dtype]
        self.values = values.reshape(rows, self.columns // size)
        self.part_bytes = self.columns // size * self.dtype.itemsize  # of a row, on one rank
        self.step = max(1, BUFFER_BYTES // (self.part_bytes * size))
        self.bands = -(-rows // self.step)

    def count(self, number: int) -> int:
        """Rows of a band; 0 behind the last."""
        return max(0, min(self.step, self.total - number * self.step))

    def own(self, number: int) -> torch.Tensor:
        """This rank's columns of a band, as bytes."""
        first = number * self.step
        part = self.values[first : first + self.count(number)].to(self.dtype)
        return part.contiguous().view(torch.uint8).reshape(-1)


@dataclass(frozen=True)
class _Exchange:
    """A band on its way. ``rows``: this rank's tensor of the turn; None: it has none, or none left."""

    rows: _Rows | None
    number: int
    work: Any
    sent: torch.Tensor  # kept until it has arrived
    got: torch.Tensor
    last: bool

    def write(self, files: Files) -> int:
        """Write the band that has come; returns its bytes."""
        rows = self.rows
        if rows is None:
            return 0
        count = rows.count(self.number)
        whole = torch.cat(
            [part.view(count, rows.part_bytes) for part in self.got.split(count * rows.part_bytes)], dim=1
        )
        data = memoryview(whole.cpu().numpy().data).cast("B")
        write_box(rows.tiled, Rectangle(self.number * rows.step, count, 0, rows.columns), data, files)
        return len(data)


def _exchanges(parts: Sequence[Part], group: dist.ProcessGroup) -> Iterator[_Exchange]:
    """Begin one exchange after the other. In a turn each rank gets one tensor; those of a turn are of equal size."""
    size, rank = group.size(), group.rank()
    parts = sorted(parts, key=lambda part: part[0].nbytes)
    for first in range(0, len(parts), size):
        turn = [_Rows(tiled, values, size) for tiled, values in parts[first : first + size]]
        bands = max(one.bands for one in turn)
        for number in range(bands):
            own = turn[rank] if rank < len(turn) and turn[rank].count(number) else None
            sent = [one.own(number) for one in turn]
            counts = [len(part) for part in sent] + [0] * (size - len(turn))
            expected = own.count(number) * own.part_bytes if own else 0
            together = torch.cat(sent)
            got = torch.empty(expected * size, dtype=torch.uint8, device=together.device)
            work = dist.all_to_all_single(got, together, [expected] * size, counts, group=group, async_op=True)
            last = first + size >= len(parts) and number == bands - 1
            yield _Exchange(own, number, work, together, got, last)

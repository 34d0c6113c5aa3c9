"""Writes tensors whose columns are cut among tensor-parallel ranks of one machine, in whole rows.

A rank that wrote its part of each row would make a call for some KiB, which takes four times as long as the same bytes
in one run, and waits for those of the other ranks. So the ranks lay their columns side by side in memory that they
share, and each writes whole rows of another tensor.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from sophia_mcore.errors import SophiaError
from sophia_mcore.model.names import Shard
from sophia_mcore.weights.formats.stream import Files, write_box
from sophia_mcore.weights.formats.tiles import Tiled
from sophia_mcore.weights.formats.torch_dtypes import TORCH_DTYPES
from sophia_mcore.weights.ops import Rectangle, matrix_shape

HALF_BYTES = 4 << 20  # one half is filled while the other is written
_TOKEN_BYTES = 16  # by which ranks know the memory: process numbers repeat among containers
_BOOT = Path("/proc/sys/kernel/random/boot_id")
Part = tuple[Tiled, torch.Tensor]  # a tensor, and this rank's columns of it


def is_cut_by_columns(tiled: Tiled, shard: Shard) -> bool:
    """Whether each rank holds as many columns, in the order of the ranks, and a half has room for a row of each."""
    columns = matrix_shape(tiled.shape)[1]
    even = shard.axis == 1 and shard.size > 1 and shard.blocks == 1 and columns % shard.size == 0
    return even and columns * TORCH_DTYPES[tiled.dtype].itemsize <= _slot_bytes(shard.size)


def _slot_bytes(ranks: int) -> int:
    """A rank's share of a half, in which any dtype is aligned."""
    return HALF_BYTES // ranks // 64 * 64


def shared_memory(group: dist.ProcessGroup) -> mmap.mmap | None:
    """Memory of two halves that the ranks of ``group`` share; None on all of them if they are not on one machine.

    It has no name and ends with its last process.
    """
    found, descriptor, mine = None, -1, ("", 0, -1, b"")
    with suppress(OSError):
        if group.rank() == 0:
            descriptor = os.memfd_create("columns")
            os.ftruncate(descriptor, 2 * HALF_BYTES)
            token = os.urandom(_TOKEN_BYTES)
            os.pwrite(descriptor, token, 0)
            mine = (_BOOT.read_text(), os.getpid(), descriptor, token)
        else:
            mine = (_BOOT.read_text(), os.getpid(), -1, b"")
    everybody = [mine] * group.size()
    dist.all_gather_object(everybody, mine, group=group)
    boot, process, number, token = everybody[0]
    with suppress(OSError, ValueError):  # ValueError: a file that is too short, in a container of its own
        if number >= 0 and all(one[0] == boot for one in everybody):
            own = os.open(f"/proc/{process}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
            try:
                memory = mmap.mmap(own, 2 * HALF_BYTES)
                found = memory if memory[:_TOKEN_BYTES] == token else None  # None: another process of this number
            finally:
                os.close(own)
    mapped = [found is not None] * group.size()
    dist.all_gather_object(mapped, found is not None, group=group)
    if descriptor >= 0:
        os.close(descriptor)  # the others have opened it by now
    return found if all(mapped) else None


def write_columns(parts: Sequence[Part], group: dist.ProcessGroup, memory: mmap.mmap, files: Files) -> int:
    """Write tensors that are cut by columns; returns the bytes that this rank has written.

    All ranks of ``group`` call it together, with their columns of the same tensors in the same order.

    Raises SophiaError when the disk is full or cannot be written, after the last barrier: nobody waits in vain.
    """
    size, rank, problem, written, half = group.size(), group.rank(), None, 0, 0
    shared = torch.frombuffer(memory, dtype=torch.uint8)
    slot_bytes = _slot_bytes(size)
    parts = sorted(parts, key=lambda part: part[0].nbytes)  # those of a turn are of equal size, of different layers
    for first in range(0, len(parts), size):
        turn = [_Rows(tiled, values, size, slot_bytes) for tiled, values in parts[first : first + size]]
        for number in range(max(one.bands for one in turn)):
            slots = shared[half : half + HALF_BYTES].split(slot_bytes)
            for rows, slot in zip(turn, slots, strict=False):
                rows.fill(number, slot, rank)
            dist.barrier(group)  # filled by all; and what they had in the other half is written
            half = HALF_BYTES - half
            if rank < len(turn) and problem is None:
                try:
                    written += turn[rank].write(number, slots[rank], files)
                except SophiaError as error:
                    problem = error
    if problem is not None:
        raise problem
    return written


class _Rows:
    """One tensor of a turn, in bands of whole rows."""

    def __init__(self, tiled: Tiled, values: torch.Tensor, size: int, slot_bytes: int) -> None:
        self.total, self.columns = matrix_shape(tiled.shape)
        if values.numel() * size != self.total * self.columns:
            raise SophiaError(f"{tiled.name}: the parameter {list(values.shape)} does not fit {list(tiled.shape)}")
        self.tiled, self.dtype = tiled, TORCH_DTYPES[tiled.dtype]
        self.values = values.reshape(self.total, self.columns // size)
        self.row_bytes = self.columns * self.dtype.itemsize
        self.step = slot_bytes // self.row_bytes
        self.bands = -(-self.total // self.step)

    def _count(self, number: int) -> int:
        """Rows of a band; 0 behind the last."""
        return max(0, min(self.step, self.total - number * self.step))

    def fill(self, number: int, slot: torch.Tensor, rank: int) -> None:
        """Lay this rank's columns of a band, cast to the stored dtype, into the slot."""
        count, width = self._count(number), self.values.shape[1]
        if count:
            band = slot[: count * self.row_bytes].view(self.dtype).view(count, self.columns)
            first = number * self.step
            band[:, rank * width : (rank + 1) * width].copy_(self.values[first : first + count])

    def write(self, number: int, slot: torch.Tensor, files: Files) -> int:
        """Write a band that all ranks have filled; returns its bytes."""
        count = self._count(number)
        if count:
            data = memoryview(slot[: count * self.row_bytes].numpy().data)
            write_box(self.tiled, Rectangle(number * self.step, count, 0, self.columns), data, files)
        return count * self.row_bytes

"""Context parallelism: which tokens of a row belong to which rank, and how to get them back together.

Every sequence is cut into 2 x CP equal slices; rank r holds slices r and 2 CP - 1 - r (zigzag), so that causal
attention costs every rank the same. Transformer Engine cuts packed rows the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class ContextCut:
    """The cut of one row (or of a batch of rows, each one sequence) of S tokens over a context-parallel group.

    Args:
        boundaries: where sequences begin, and S at the end: cu_seqlens as plain numbers; (0, S) when not packed.
        group: context-parallel group.

    Raises:
        ValueError: a sequence does not divide into 2 x CP slices.
    """

    def __init__(self, boundaries: Sequence[int], group: dist.ProcessGroup, device: torch.device) -> None:
        self.group, self.size, self.length = group, group.size(), boundaries[-1]
        if self.size == 1:
            return
        self.order = rank_order(boundaries, self.size).to(device)
        self.mine = self.order.view(self.size, -1)[group.rank()]

    def select(self, values: Tensor, dim: int) -> Tensor:
        """This rank's tokens of a whole row: `dim` shrinks from S to S / CP."""
        return values if self.size == 1 else values.index_select(dim, self.mine)

    def join(self, values: Tensor, dim: int) -> Tensor:
        """Whole rows of every rank's tokens: `dim` grows from S / CP to S. The backward takes this rank's tokens only.

        For values from which every rank computes the same (the loss): gradients are not summed over ranks.
        """
        if self.size == 1:
            return values
        return _Join.apply(values.transpose(0, dim).contiguous(), self).transpose(0, dim)

    def positions(self, local: Tensor) -> Tensor:
        """Places in the whole row of places in this rank's part."""
        return local if self.size == 1 else self.mine[local]


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, cut: ContextCut) -> Tensor:
        ctx.cut = cut
        gathered = values.new_empty((cut.length, *values.shape[1:]))
        dist.all_gather_into_tensor(gathered, values, group=cut.group)
        return torch.empty_like(gathered).index_copy_(0, cut.order, gathered)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.cut.mine), None


def rank_order(boundaries: Sequence[int], size: int) -> Tensor:
    """[S] places in the row, rank 0's tokens first, then rank 1's, and so on.

    >>> rank_order([0, 8], 2).tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]

    Raises:
        ValueError: a sequence does not divide into 2 x CP slices.
    """
    parts: list[list[Tensor]] = [[] for _ in range(size)]
    for number, (start, end) in enumerate(pairwise(boundaries)):
        if (end - start) % (2 * size):
            raise ValueError(
                f"sequence {number} of the row has {end - start} tokens; context parallelism over {size} ranks "
                f"needs a multiple of {2 * size}: pad it"
            )
        slices = torch.arange(start, end).view(2 * size, -1)
        for rank in range(size):
            parts[rank] += [slices[rank], slices[2 * size - 1 - rank]]
    return torch.cat([torch.cat(part) for part in parts]) if boundaries[-1] else torch.empty(0, dtype=torch.long)

"""Context parallelism: divides the tokens of a row among ranks and joins them again.

Every sequence is cut into 2 x CP equal slices. Rank r holds slices r and 2 CP - 1 - r (zigzag), so that causal
attention costs every rank the same. Transformer Engine cuts packed rows in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class ContextCut:
    """Divides a row of S tokens (or a batch of rows with one sequence each) over a context-parallel group.

    Args:
        boundaries: starts of the sequences, then S, as in cu_seqlens; (0, S) if the row is not packed.
        group: context-parallel group.
        device: device of the index tensors.

    Raises:
        ValueError: the length of a sequence is not a multiple of 2 x CP.
    """

    def __init__(self, boundaries: Sequence[int], group: dist.ProcessGroup, device: torch.device) -> None:
        self.group, self.size, self.length = group, group.size(), boundaries[-1]
        if self.size == 1:
            return
        self.order = rank_order(boundaries, self.size).to(device)
        self.mine = self.order.view(self.size, -1)[group.rank()]

    def select(self, values: Tensor, dim: int) -> Tensor:
        """This rank's tokens of a whole row. `dim` shrinks from S to S / CP."""
        return values if self.size == 1 else values.index_select(dim, self.mine)

    def join(self, values: Tensor, dim: int) -> Tensor:
        """Join the tokens of all ranks to whole rows. `dim` grows from S / CP to S.

        The backward selects this rank's tokens and does not sum over ranks. So use this only if every rank computes the
        same from the result (the loss).
        """
        if self.size == 1:
            return values
        return _Join.apply(values.transpose(0, dim).contiguous(), self).transpose(0, dim)

    def positions(self, local: Tensor) -> Tensor:
        """Map indices into this rank's part to indices into the whole row."""
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
    """Indices [S] into the row: first those of rank 0's tokens, then those of rank 1's, and so on.

    >>> rank_order([0, 8], 2).tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]

    Raises:
        ValueError: the length of a sequence is not a multiple of 2 x CP.
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

"""What is summed over ranks: one denominator per step before any micro batch, and the metrics after the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from sophia_mcore.errors import SophiaError
from sophia_mcore.objective.metrics import Metrics, Sums, add, finish


class _Batch(Protocol):
    @property
    def target_mask(self) -> Tensor: ...

    @property
    def sequence_ids(self) -> Tensor: ...


def local_denominator(batches: Sequence[_Batch], normalization: str | None) -> float:
    """Targets (token_mean) or sequences with a target (sequence_mean) of this rank's micro batches; 1 for `sum`."""
    if normalization == "sum":
        return 1.0
    if normalization == "sequence_mean":
        return float(sum(len(batch.sequence_ids[batch.target_mask].unique()) for batch in batches))
    return float(sum(int(batch.target_mask.sum()) for batch in batches))


def global_denominator(
    batches: Sequence[_Batch],
    normalization: str | None,
    group: dist.ProcessGroup | None,
    device: torch.device | str = "cpu",
) -> float:
    """The step's one denominator: the sum of `local_denominator` over `group`, reduced once.

    Args:
        batches: this data-parallel rank's micro batches, whole rows.
        group: data-parallel group WITHOUT context parallelism (its ranks hold the same rows); None: one rank.
        device: where the group's backend wants its tensors.

    Raises SophiaError on every rank alike when no rank has a target.
    """
    total = torch.tensor(local_denominator(batches, normalization), dtype=torch.float64, device=device)
    targets = torch.tensor(local_denominator(batches, "token_mean"), dtype=torch.float64, device=device)
    both = torch.stack([total, targets])
    if group is not None and group.size() > 1:
        dist.all_reduce(both, group=group)
    if both[1] == 0:
        raise SophiaError("a global batch has no target token: training on it is impossible")
    return 1.0 if normalization == "sum" else float(both[0])


def reduce_metrics(
    parts: Sequence[Metrics], group: dist.ProcessGroup | None, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Numbers over all micro batches and ranks; one all-reduce. Every rank must measure the same names.

    `group` is the data-parallel group without context parallelism, as whole rows are measured.
    """
    total = add(parts)
    names = sorted(total)
    if not names or group is None or group.size() == 1:
        return finish(total)
    flat = torch.cat([total[name].values.to(device) for name in names])
    dist.all_reduce(flat, group=group)
    pieces = flat.split([len(total[name].values) for name in names])
    return finish({name: Sums(total[name].kind, piece) for name, piece in zip(names, pieces, strict=True)})

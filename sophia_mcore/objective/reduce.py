"""What is summed over ranks: the denominators of a step before any micro batch, and the metrics after the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from sophia_mcore.batch.samples import AUXILIARY
from sophia_mcore.errors import SophiaError
from sophia_mcore.objective.metrics import Metrics, Sums, add, finish


class _Batch(Protocol):
    @property
    def target_mask(self) -> Tensor: ...

    @property
    def sequence_ids(self) -> Tensor: ...

    @property
    def kinds(self) -> Tensor: ...


class Denominators(NamedTuple):
    """What the two sums of a step are divided by: the objective's, and that of the auxiliary negative log-likelihood
    (its targets; 0 without any)."""

    objective: float
    auxiliary: float = 0.0

    @property
    def auxiliary_scale(self) -> float:
        """Factor of an auxiliary token's term: dividing by ``objective`` then divides it by ``auxiliary``."""
        return self.objective / self.auxiliary if self.auxiliary else 0.0


def local_denominator(batches: Sequence[_Batch], normalization: str | None, fixed_tokens: int | None = None) -> float:
    """Of this rank's micro batches, without auxiliary samples: targets (token_mean), sequences with a target
    (sequence_mean), ``fixed_tokens`` for each of those (fixed: Dr. GRPO, arXiv 2503.20783); 1 for `sum`.
    """
    if normalization == "sum":
        return 1.0
    counted = [batch.target_mask & (batch.kinds != AUXILIARY) for batch in batches]
    if normalization == "token_mean":
        return float(sum(int(mask.sum()) for mask in counted))
    sequences = sum(len(batch.sequence_ids[mask].unique()) for batch, mask in zip(batches, counted, strict=True))
    if normalization == "sequence_mean":
        return float(sequences)
    if fixed_tokens is None:
        raise ValueError("normalization 'fixed' needs the constant length")
    return float(sequences * fixed_tokens)


def global_denominators(
    batches: Sequence[_Batch],
    normalization: str | None,
    group: dist.ProcessGroup | None,
    device: torch.device | str = "cpu",
    fixed_tokens: int | None = None,
) -> Denominators:
    """The step's denominators: sums of `local_denominator` and of auxiliary targets over ``group``, reduced once.

    Where there are auxiliary targets only, the objective's is 1.

    Args:
        batches: this data-parallel rank's micro batches, whole rows.
        group: data-parallel group WITHOUT context parallelism (its ranks hold the same rows); None: one rank.
        device: where the group's backend wants its tensors.

    Raises SophiaError on every rank alike when no rank has a target.
    """
    own = local_denominator(batches, normalization, fixed_tokens)
    targets = local_denominator(batches, "token_mean")
    auxiliary = float(sum(int(batch.target_mask.sum()) for batch in batches)) - targets
    sums = torch.tensor([own, targets, auxiliary], dtype=torch.float64, device=device)
    if group is not None and group.size() > 1:
        dist.all_reduce(sums, group=group)
    objective, targets, auxiliary = sums.tolist()
    if targets + auxiliary == 0:
        raise SophiaError("a global batch has no target token: training on it is impossible")
    return Denominators(1.0 if normalization == "sum" or not targets else objective, auxiliary)


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

"""Sums over ranks: the denominators of a step, before its micro batches, and its metrics, after them."""

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
    """Divisors of the two sums of a step. ``objective``: of the objective. ``auxiliary``: of the auxiliary negative
    log-likelihood, its number of targets (0 if it has none)."""

    objective: float
    auxiliary: float = 0.0

    @property
    def auxiliary_scale(self) -> float:
        """Factor of auxiliary terms. With it, dividing by ``objective`` has the effect of dividing by ``auxiliary``."""
        return self.objective / self.auxiliary if self.auxiliary else 0.0


def local_denominator(batches: Sequence[_Batch], normalization: str | None, fixed_tokens: int | None = None) -> float:
    """Denominator of this rank's micro batches, without auxiliary samples.

    token_mean: number of targets. sequence_mean: number of sequences with a target. fixed: ``fixed_tokens`` x this
    number (Dr. GRPO, arXiv 2503.20783). sum: 1. Raises ValueError for `fixed` without ``fixed_tokens``.
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
    """The step's denominators: `local_denominator` and the auxiliary targets, summed over ``group`` in one all-reduce.

    If all targets are auxiliary, the objective's denominator is 1.

    Args:
        batches: this data-parallel rank's micro batches, whole rows.
        group: data-parallel group WITHOUT context parallelism (its ranks hold the same rows); None: one rank.
        device: device of the tensor to reduce, which the group's backend must support.

    Raises SophiaError on every rank if no rank has a target.
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
    """Metrics over all micro batches and ranks, with one all-reduce. Every rank must measure the same names.

    `group`: data-parallel group without context parallelism, since whole rows are measured.
    """
    total = add(parts)
    names = sorted(total)
    if not names or group is None or group.size() == 1:
        return finish(total)
    flat = torch.cat([total[name].values.to(device) for name in names])
    dist.all_reduce(flat, group=group)
    pieces = flat.split([len(total[name].values) for name in names])
    return finish({name: Sums(total[name].kind, piece) for name, piece in zip(names, pieces, strict=True)})

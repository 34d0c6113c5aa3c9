"""Measurements that are kept as sums with their own denominators: added over micro batches and ranks, then divided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# Edges of the bins of log-ratios (nats): narrow bins near 0, where clipping happens, wide bins far from 0.
_HALF = torch.cat([torch.linspace(0.0, 0.5, 51), torch.linspace(0.55, 5.0, 90), torch.linspace(6.0, 60.0, 55)])
EDGES = torch.cat([-_HALF.flip(0), _HALF[1:]]).double()
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Sums:
    """fp64 values of one measurement that may be added.

    mean: [total, count]. norm: [sum of squares]. share: [sum, sum of squares, count], for effective sample size per
    count. histogram: counts between EDGES; the first and last bins have no outer limit.
    """

    kind: Literal["mean", "norm", "share", "histogram"]
    values: Tensor

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.kind, self.values + other.values)


Metrics = Mapping[str, Sums]


def mean(values: Tensor, mask: Tensor) -> Sums:
    """Mean of `values` where `mask`."""
    return Sums("mean", torch.stack([_masked(values, mask).sum(), mask.sum().double()]))


def norm(values: Tensor, mask: Tensor) -> Sums:
    """Euclidean norm of `values` where `mask`."""
    return Sums("norm", _masked(values, mask).square().sum()[None])


def effective_sample_share(log_weights: Tensor, mask: Tensor) -> Sums:
    """Kish's effective sample size (sum w)^2 / sum w^2, divided by the number of samples: 1 means equal weights."""
    weights = torch.where(mask, log_weights.detach().double().clamp(-300.0, 300.0).exp(), 0.0)
    return Sums("share", torch.stack([weights.sum(), weights.square().sum(), mask.sum().double()]))


def ratio_histogram(log_ratios: Tensor, mask: Tensor) -> Sums:
    """Histogram of log-ratios where `mask`, for quantiles of the importance ratios."""
    edges = EDGES.to(log_ratios.device)
    bins = torch.bucketize(log_ratios.detach().double(), edges)
    counts = torch.zeros(len(EDGES) + 1, dtype=torch.float64, device=log_ratios.device)
    return Sums("histogram", counts.index_add_(0, bins, mask.double()))


def add(parts: Iterable[Metrics]) -> dict[str, Sums]:
    """Sum the measurements by name. A name may be missing in some parts."""
    total: dict[str, Sums] = {}
    for part in parts:
        for name, sums in part.items():
            total[name] = total[name] + sums if name in total else sums
    return total


def finish(metrics: Metrics) -> dict[str, float]:
    """Turn sums into numbers, by name. A measurement whose denominator is zero is left out."""
    numbers: dict[str, float] = {}
    for name, sums in metrics.items():
        values = sums.values.tolist()
        if sums.kind == "mean" and values[1]:
            numbers[name] = values[0] / values[1]
        elif sums.kind == "norm":
            numbers[name] = values[0] ** 0.5
        elif sums.kind == "share" and values[1]:
            numbers[name] = values[0] ** 2 / values[1] / values[2]
        elif sums.kind == "histogram" and sum(values):
            numbers |= {f"{name}_p{100 * q:02.0f}": _quantile(sums.values.cpu(), q) for q in QUANTILES}
    return numbers


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values.detach().double(), 0.0)


def _quantile(counts: Tensor, q: float) -> float:
    """exp of the interpolated q-quantile of the log-ratios. Values in the outer bins count as the outermost edge."""
    cumulative = counts.cumsum(0)
    wanted = q * float(cumulative[-1])
    bin_ = int(torch.searchsorted(cumulative, torch.tensor(wanted, dtype=torch.float64)).clamp(0, len(counts) - 1))
    if bin_ == 0 or bin_ == len(counts) - 1:
        return float(EDGES[min(bin_, len(EDGES) - 1)].exp())
    before = float(cumulative[bin_ - 1])
    inside = (wanted - before) / max(float(counts[bin_]), 1e-300)
    return float((EDGES[bin_ - 1] + inside * (EDGES[bin_] - EDGES[bin_ - 1])).exp())

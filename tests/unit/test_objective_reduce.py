"""Denominators and metrics of one rank; over ranks in tests/dist."""

from dataclasses import dataclass

import pytest
import torch

from sophia_mcore.errors import SophiaError
from sophia_mcore.objective.metrics import EDGES, add, finish, mean, ratio_histogram
from sophia_mcore.objective.reduce import global_denominator, reduce_metrics


@dataclass
class Row:
    target_mask: torch.Tensor
    sequence_ids: torch.Tensor
    sample_ids: tuple = ("a", "b")


ROW = Row(torch.tensor([[0, 1, 1, 1, 0, 0]]).bool(), torch.tensor([[0, 0, 0, 1, 1, -1]]))
NONE = Row(torch.zeros(1, 6).bool(), torch.full((1, 6), -1))


def test_denominators():
    assert global_denominator([ROW, NONE, ROW], "token_mean", None) == 6.0
    assert global_denominator([ROW, NONE, ROW], "sequence_mean", None) == 4.0
    assert global_denominator([ROW, ROW], "sum", None) == 1.0


@pytest.mark.parametrize("normalization", ["token_mean", "sequence_mean", "sum"])
def test_a_batch_without_targets_is_refused(normalization):
    with pytest.raises(SophiaError, match="no target token"):
        global_denominator([NONE, NONE], normalization, None)


def test_each_metric_has_its_own_denominator():
    first = {"a": mean(torch.tensor([1.0, 2.0]), torch.tensor([True, True]))}
    second = {"a": mean(torch.tensor([6.0]), torch.tensor([True])), "b": mean(torch.ones(1), torch.tensor([False]))}
    assert finish(add([first, second])) == {"a": 3.0}
    assert reduce_metrics([first, second], None) == {"a": 3.0}


def test_quantiles():
    generator = torch.Generator().manual_seed(0)
    ratios = torch.randn(200_000, generator=generator) * 0.3
    numbers = finish({"ratio": ratio_histogram(ratios, torch.ones(200_000).bool())})
    for q in (0.01, 0.1, 0.5, 0.9, 0.99):
        assert numbers[f"ratio_p{100 * q:02.0f}"] == pytest.approx(float(ratios.exp().quantile(q)), rel=0.01)
    assert (EDGES.diff() > 0).all()
    far = finish({"ratio": ratio_histogram(torch.tensor([-1e9, 1e9]), torch.ones(2).bool())})
    assert far["ratio_p01"] < 1e-20 and far["ratio_p99"] > 1e20

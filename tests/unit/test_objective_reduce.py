"""Denominators and metrics of one rank; over ranks in tests/dist."""

from dataclasses import dataclass, replace

import pytest
import torch

from sophia_mcore.batch.samples import AUXILIARY, FRESH
from sophia_mcore.errors import SophiaError
from sophia_mcore.objective.metrics import EDGES, add, finish, mean, ratio_histogram
from sophia_mcore.objective.reduce import Denominators, global_denominators, reduce_metrics


@dataclass
class Row:
    target_mask: torch.Tensor
    sequence_ids: torch.Tensor
    kinds: torch.Tensor
    sample_ids: tuple = ("a", "b")


FRESH_KINDS = torch.full((1, 6), FRESH)
ROW = Row(torch.tensor([[0, 1, 1, 1, 0, 0]]).bool(), torch.tensor([[0, 0, 0, 1, 1, -1]]), FRESH_KINDS)
NONE = Row(torch.zeros(1, 6).bool(), torch.full((1, 6), -1), FRESH_KINDS)
MIXED = replace(ROW, kinds=torch.where(ROW.sequence_ids == 1, AUXILIARY, FRESH))  # 2 targets, 1 auxiliary one
AUXILIARY_ONLY = replace(ROW, kinds=torch.full((1, 6), AUXILIARY))


def test_denominators():
    assert global_denominators([ROW, NONE, ROW], "token_mean", None) == (6.0, 0.0)
    assert global_denominators([ROW, NONE, ROW], "sequence_mean", None) == (4.0, 0.0)
    assert global_denominators([ROW, NONE, ROW], "fixed", None, fixed_tokens=100) == (400.0, 0.0)
    assert global_denominators([ROW, ROW], "sum", None) == (1.0, 0.0)
    with pytest.raises(ValueError, match="constant length"):
        global_denominators([ROW], "fixed", None)


def test_auxiliary_targets_have_a_denominator_of_their_own():
    """They do not enter the objective's, and their scale makes up for the division by it."""
    for normalization, wanted in (("token_mean", 5.0), ("sequence_mean", 3.0), ("fixed", 30.0), ("sum", 1.0)):
        found = global_denominators([ROW, MIXED], normalization, None, fixed_tokens=10)
        assert found == (wanted, 1.0), normalization
        assert found.auxiliary_scale / found.objective == 1.0 / found.auxiliary
    alone = global_denominators([AUXILIARY_ONLY, NONE], "token_mean", None)
    assert alone == (1.0, 3.0)
    assert alone.auxiliary_scale == pytest.approx(1 / 3)
    assert Denominators(6.0).auxiliary_scale == 0.0


@pytest.mark.parametrize("normalization", ["token_mean", "sequence_mean", "sum"])
def test_a_batch_without_targets_is_refused(normalization):
    with pytest.raises(SophiaError, match="no target token"):
        global_denominators([NONE, NONE], normalization, None)


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

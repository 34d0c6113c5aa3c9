"""Every layout gives one rank's numbers: loss, every element of every gradient, three optimizer steps."""

from __future__ import annotations

import functools
from typing import Any

import layouts
import pytest
import torch
from harness import run_layout

from sophia_mcore.config.schema import Parallel

CASES = {
    "tp2": {"tensor": 2},
    "tp2+sp": {"tensor": 2, "sequence_parallel": True},
    "pp2": {"pipeline": 2},
    "cp2": {"context": 2},
    "tp2+pp2": {"tensor": 2, "pipeline": 2},
}


@functools.cache
def reference(**options: Any) -> tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return result(Parallel(), **options)


def result(parallel: Parallel, data: int = 1, family: str = "qwen2", packed: bool = True, **train: Any) -> Any:
    spec, config = layouts.tiny_spec(family), layouts.tiny_config(parallel, **train)
    outcomes = run_layout(layouts.train, parallel, spec, config, layouts.rows(4, packed), data=data)
    by_data = {}
    for rank, outcome in enumerate(outcomes):
        if outcome.losses:
            by_data.setdefault(rank // (parallel.tensor * parallel.context) % data, outcome.losses)
    losses = [sum(values) for values in zip(*by_data.values(), strict=True)]
    gradients = layouts.together([part for outcome in outcomes for part in outcome.gradients])
    parameters = layouts.together([part for outcome in outcomes for part in outcome.parameters])
    return losses, gradients, parameters


def check(parallel: Parallel, data: int = 1, **options: Any) -> None:
    losses, gradients, parameters = result(parallel, data, **options)
    wanted_losses, wanted_gradients, wanted_parameters = reference(**options)
    assert losses == pytest.approx(wanted_losses, rel=1e-5)
    assert losses[-1] < losses[0]
    assert gradients.keys() == wanted_gradients.keys() and len(gradients) > 30
    for name, wanted in wanted_gradients.items():
        torch.testing.assert_close(gradients[name], wanted, rtol=1e-4, atol=2e-6, msg=lambda t, n=name: f"{n}: {t}")
        assert wanted.abs().max() > 1e-5, name
    for name, wanted in wanted_parameters.items():
        torch.testing.assert_close(parameters[name], wanted, rtol=1e-4, atol=2e-5, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("case", CASES)
def test_layout_equals_one_rank(case: str) -> None:
    check(Parallel(**CASES[case]), train_vision_tower=True, train_projector=True)

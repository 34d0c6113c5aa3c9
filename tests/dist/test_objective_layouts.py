"""Every objective gives one rank's loss, diagnostics and gradients however the work is cut: micro batches, packing,
data, context, tensor and pipeline parallel; through the trainer's own step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sophia_mcore.batch.collate import PackedBatch, aligned, collate
from sophia_mcore.batch.pack import pack
from sophia_mcore.batch.samples import AUXILIARY, FRESH, STORED, SUPERVISED
from sophia_mcore.batch.tokenize import TokenizedSample
from sophia_mcore.config.losses import LOSSES
from sophia_mcore.config.rl import RlObjective
from sophia_mcore.config.schema import Parallel
from sophia_mcore.model import lvlm
from sophia_mcore.objective.losses import TERMS
from sophia_mcore.train.optim import wrap_ddp
from sophia_mcore.train.step import backward, train_step
from tests.support import layouts
from tests.support.harness import run_layout
from tests.support.objectives import objective

OBJECTIVES = {
    **{name: objective(name, behaviour="reference", chunk_tokens=16) for name in LOSSES},
    "grpo per sequence, tis": objective(
        "grpo", behaviour="reference", normalization="sequence_mean", correction="tis", chunk_tokens=16
    ),
    "sophia sum": objective(normalization="sum"),
    "on-policy, icepop, k3, fixed length": RlObjective(
        normalization="fixed", fixed_tokens=30, correction="icepop", kl=0.1, chunk_tokens=16
    ),
}
# name: (layout, data-parallel size, row length)
CUTS: dict[str, tuple[dict[str, Any], int, int]] = {
    "short rows, more micro batches": ({}, 1, 40),
    "dp2": ({}, 2, 40),
    "cp2": ({"context": 2}, 1, 80),
    "tp2 sp": ({"tensor": 2, "sequence_parallel": True}, 1, 80),
    "pp2": ({"pipeline": 2}, 1, 80),
    "tp2 cp2": ({"tensor": 2, "context": 2}, 1, 80),
    "dp2 pp2": ({"pipeline": 2}, 2, 40),
}


def samples() -> list[TokenizedSample]:
    """Text only: right and wrong ones of the store, the policy's own, further data, an auxiliary one."""
    rng = np.random.default_rng(0)
    kinds = (STORED, STORED, FRESH, SUPERVISED, STORED, FRESH, STORED, AUXILIARY)
    weights = (1.0, -0.8, 0.6, 1.0, -1.2, -0.5, 0.4, 0.05)
    return [
        TokenizedSample(
            id=f"s{i}",
            source="kept",
            input_ids=rng.integers(0, layouts.IMAGE_TOKEN, 9 + 4 * i).astype(np.int32),
            prompt_tokens=4 + i % 3,
            images=(),
            image_sizes=(),
            weight=weight,
            kind=kind,
        )
        for i, (kind, weight) in enumerate(zip(kinds, weights, strict=True))
    ]


def batches(row_length: int, multiple: int, rank: int, ranks: int) -> list[PackedBatch]:
    """This rank's rows of the one global batch, an empty one where they do not divide."""
    found = samples()
    rng = np.random.default_rng(1)
    given = [{s.id: -5.3 + 0.4 * rng.standard_normal(int(s.target_mask.sum())) for s in found} for _ in range(3)]
    rows: list[list[int]] = pack([aligned(len(s.input_ids), multiple) for s in found], row_length)
    rows += [[]] * (-len(rows) % ranks)
    return [
        collate(
            [found[item] for item in row],
            length=row_length,
            sequence_multiple=multiple,
            pixels=lambda digest: np.empty(0, np.float32),
            row_shape=(3, 28, 28),
            behaviour_logprobs=given[0],
            rollout_logprobs=given[1],
            reference_logprobs=given[2],
        )
        for row in rows[rank::ranks]
    ]


def steps(groups: Any, backend: Any, spec: Any, parallel: Parallel, row_length: int) -> dict[str, Any]:
    """By objective: what the trainer's step reports, and the gradients before the optimizer would use them."""
    config = layouts.tiny_config(  # all gradients stay on all ranks
        parallel, distributed_optimizer=False, term_gradients_every_steps=0
    )
    chunks = lvlm.build(spec, config, groups, backend)
    layouts.fill(chunks, spec)
    wrapped = wrap_ddp(chunks, config.train)
    mine = batches(row_length, 2 * parallel.context, groups.data_rank, groups.data_size)
    found = {}
    for name, chosen in OBJECTIVES.items():
        optimizer = SimpleNamespace(
            zero_grad=lambda: None,
            step=lambda: (True, 0.0, None),
            param_groups=[],
        )
        job = SimpleNamespace(
            config=config.model_copy(update={"objective": chosen}),
            groups=groups,
            backend=backend,
            chunks=wrapped,
            optimizer=optimizer,
            steps=1,
            checkpoints=SimpleNamespace(writing=False),
            own_term=None,
            reports=groups.is_last_stage and groups.tensor_rank == 0 and groups.context_rank == 0,
        )
        report = train_step(job, mine, 0, False)  # type: ignore[arg-type]
        found[name] = report.loss, report.measures, list(layouts.parts(chunks, spec, "main_grad"))
        if torch.distributed.get_world_size() == 1:
            check_terms(job, mine, found[name][2], lambda: layouts.parts(chunks, spec, "main_grad"))
    return found


def check_terms(job: Any, mine: list[PackedBatch], whole: list[Any], parts: Callable[[], Iterable[Any]]) -> None:
    """The gradients of the terms add up to the whole one, and each has a part in it."""
    total = {name: torch.zeros_like(gradient) for name, _, gradient in whole}
    for term in TERMS:
        backward(job, mine, term)
        own = {name: gradient for name, _, gradient in parts()}
        assert any(gradient.abs().max() > 0 for gradient in own.values()), term
        total = {name: gradient + own[name] for name, gradient in total.items()}
    for name, _, gradient in whole:
        torch.testing.assert_close(total[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@functools.cache
def result(cut: str | None) -> dict[str, tuple[float, dict[str, float], dict[str, torch.Tensor]]]:
    layout, data, row_length = CUTS[cut] if cut else ({}, 1, 160)
    parallel = Parallel(**layout)
    outcomes = run_layout(steps, parallel, layouts.tiny_spec(layers=2), parallel, row_length, data=data, timeout=300.0)
    together = {}
    for name in OBJECTIVES:
        losses = {outcome[name][0] for outcome in outcomes}
        assert len(losses) == 1  # every rank knows the same
        measures = next(outcome[name][1] for outcome in outcomes if outcome[name][1])
        together[name] = losses.pop(), measures, layouts.together([p for o in outcomes for p in o[name][2]])
    return together


@pytest.mark.parametrize("cut", CUTS)
def test_the_cut_does_not_matter(cut: str) -> None:
    wanted, found = result(None), result(cut)
    for name in OBJECTIVES:
        (loss, measures, gradients), (wanted_loss, wanted_measures, wanted_gradients) = found[name], wanted[name]
        assert loss == pytest.approx(wanted_loss, rel=1e-5), name
        assert measures == pytest.approx(wanted_measures, rel=1e-3, abs=1e-6), name
        assert gradients.keys() == wanted_gradients.keys()
        for parameter, value in wanted_gradients.items():
            scale = float(value.abs().max())
            assert scale > 0, (name, parameter)
            torch.testing.assert_close(
                gradients[parameter],
                value,
                rtol=1e-4,
                atol=1e-5 * scale,
                msg=lambda text, n=name, p=parameter: f"{n}: {p}: {text}",
            )


def test_the_objectives_differ() -> None:
    losses = [round(loss, 6) for loss, _, _ in result(None).values()]
    assert len(set(losses)) == len(losses)

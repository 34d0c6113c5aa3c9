"""FP8 on the CUDA path: the check that admits it, and weights that are renewed at every update."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from sophia_mcore.config.schema import Config, Fp8, Fp8Check, Parallel
from sophia_mcore.model import lvlm
from sophia_mcore.parallel import groups as groups_module
from sophia_mcore.progress import NoProgress
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.train.optim import build_optimizer, set_learning_rate, wrap_ddp
from tests.cuda_path.shim import shimmed
from tests.gpu.gpu_world import update
from tests.support import layouts, pretended_cuda, train_world
from tests.support.harness import run


def check(config: Config, folder: RunFolder) -> tuple[dict[str, Any], Counter[str]]:
    from sophia_mcore.train import session
    from sophia_mcore.train.fp8.check import check_fp8

    with (
        shimmed() as calls,
        pretended_cuda.selected(pretended_cuda.backend()),
        session.joined(config) as (groups, backend),
    ):
        found = check_fp8(Round(config, folder, 0), groups, backend, NoProgress())
    return found, Counter(call.fp8 for call in calls if call.kind.endswith("linear"))


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [("tensorwise", "Float8CurrentScaling"), ("delayed", "TEDelayedScaling"), ("blockwise", "Float8BlockScaling")],
)
def test_the_check_runs_both_ways(tmp_path: Path, recipe: str, kind: str) -> None:
    policy = train_world.make_policy(tmp_path / "policy")
    fp8 = {"recipe": recipe, "check": {"samples": 8, "steps": 3}}
    config, folder = train_world.make_run(tmp_path / "run", policy, fp8=fp8, train={"steps": 3})
    ((found, products),) = run(check, 1, config, folder)
    # the shim rounds nothing, so only the weights' copies could differ; both halves ran
    assert found["passed"] and found["logprob_gap"]["mean"] < 1e-5, found["failures"]
    assert products.keys() == {"", kind} and min(products.values()) > 0


def updates() -> tuple[list[float], Counter[bool | None]]:
    spec, config = layouts.tiny_spec(), layouts.tiny_config(Parallel(), distributed_optimizer=False)
    config = config.model_copy(update={"fp8": Fp8(recipe="tensorwise", check=Fp8Check(skip=True))})
    with shimmed() as calls:
        chosen = pretended_cuda.backend()
        chunks = lvlm.build(spec, config, groups_module.initialize(Parallel(), chosen, gloo_copies=False), chosen)
        layouts.fill(chunks, spec)
        wrapped = wrap_ddp(chunks, config.train)
        optimizer = build_optimizer(wrapped, config.train)
        set_learning_rate(optimizer, 1e-2)
        row = layouts.rows(2)[0]

        def loss_of(model: Any) -> torch.Tensor:
            scores = model(
                row.input_ids, None, row.packed_seq_params(), row.pixel_values, row.feature_index, row.targets,
                -row.weights,
            )  # fmt: skip
            return -(scores.logprobs * row.weights).sum()

        losses = [update(wrapped[0], optimizer, loss_of) for _ in range(6)]
        return losses, Counter(call.first for call in calls if call.kind.endswith("linear"))


def test_measured_updates_renew_their_fp8_weights() -> None:
    """tests/gpu/blocks.py calls the model without a schedule, which would tell the modules that a step begins."""
    ((losses, first),) = run(updates, 1)
    assert set(first) == {True} and losses[-1] < 0.7 * losses[0], (first, losses)

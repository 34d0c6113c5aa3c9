"""A frozen tower sees each image once per step, whichever rows show it, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sophia_mcore.model.names import canonical_parameters
from sophia_mcore.train import loop
from tests.support import train_world
from tests.support.harness import run
from tests.support.layouts import together
from tests.support.tiny_qwen import save_qwen_vl

LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "tp2": (2, {"tensor": 2, "sequence_parallel": True}, {}),
    "pp2": (2, {"pipeline": 2}, {}),
    "dp2": (2, {}, {}),
    "cp2 projector trained": (2, {"context": 2}, {"train_projector": True}),
}
POLICIES: dict[str, Callable[[Path], Path]] = {
    "InternVL": train_world.make_policy,
    "Qwen2.5-VL": save_qwen_vl,
    "Qwen3-VL": lambda folder: save_qwen_vl(folder, deep=True),
}
CASES = [("InternVL", layout) for layout in LAYOUTS]
CASES += [("Qwen2.5-VL", "dp2"), ("Qwen3-VL", "tp2"), ("Qwen3-VL", "cp2 projector trained")]


def one_step(config: Any, folder: Any, shared: bool) -> tuple[int, list[str], list[Any]]:
    """(pictures through this rank's tower, pictures shown by its rows, gradients) of the first update."""
    seen: list[int] = []
    shown: list[str] = []
    gradients: list[Any] = []
    plain = loop.train_step

    def step(job: Any, batches: Any, index: int, stop: bool) -> Any:
        for chunk in job.chunks:
            if chunk.module.pre_process:
                chunk.module.vision.register_forward_hook(lambda module, given, out: seen.append(len(given[1])))
        shown.extend(key for batch in batches for key in batch.picture_keys)
        if not shared:
            batches = [replace(batch, picture_keys=()) for batch in batches]
        update = job.optimizer.step

        def keep_gradients() -> Any:
            seen.append(-sum(seen))  # what comes after the update is the measuring, which is no part of the step
            chunks = [chunk.module for chunk in job.chunks]
            for name, parameter, shard in canonical_parameters(chunks, chunks[0].spec):
                if parameter.requires_grad:
                    gradients.append((name, shard, parameter.main_grad.clone()))
            return update()

        job.optimizer.step = keep_gradients
        return plain(job, batches, index, stop)

    loop.train_step = step  # this process is a forked rank: nobody else sees it
    train_world.train(config, folder)
    return -min(seen, default=0), shown, gradients


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_each_image_is_encoded_once_per_step(tmp_path: Path, family: str, layout: str) -> None:
    policy = POLICIES[family](tmp_path / "policy")
    world, parallel, train = LAYOUTS[layout]
    settings = {"steps": 1, "global_batch_samples": 24, "distributed_optimizer": False, **train}
    found = {}
    for shared in (False, True):
        config, folder = train_world.make_run(
            tmp_path / str(shared), policy, parallel=parallel, train=settings, batch={"sequence_length_tokens": 192}
        )
        ranks = run(one_step, world, config, folder, shared)
        gradients = together([part for _, _, parts in ranks for part in parts])
        found[shared] = ([r[0] for r in ranks], [r[1] for r in ranks], gradients, train_world.losses(folder))
    plain, shared_counts = found[False][0], found[True][0]
    shown = found[True][1]
    shares = config.parallel.tensor * config.parallel.context
    for rank in range(world):
        distinct = len(set(shown[rank]))
        assert len(shown[rank]) > distinct, "the rows of the step must share images"
        if plain[rank] or shared_counts[rank]:  # the stage that has the tower
            assert plain[rank] * shares >= len(shown[rank])
            assert distinct <= shared_counts[rank] * shares < plain[rank] * shares
            if shares == 1:
                assert shared_counts[rank] == distinct
    assert sum(shared_counts) > 0
    assert found[True][3] == pytest.approx(found[False][3], rel=1e-6)
    for name, wanted in found[False][2].items():
        torch.testing.assert_close(
            found[True][2][name], wanted, rtol=1e-4, atol=1e-7, msg=lambda t, n=name: f"{n}: {t}"
        )
    assert max(float(value.abs().max()) for value in found[False][2].values()) > 1e-3

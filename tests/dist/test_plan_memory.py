"""The planner's bytes against what gloo ranks really allocate, part by part, over the layouts."""

from __future__ import annotations

from typing import Any

import pytest

from sophia_mcore.config.schema import Parallel
from sophia_mcore.plan.memory import Row, Setting, rank_memory, saving
from tests.dist import plan_world
from tests.support import layouts
from tests.support.harness import run_layout

# layout, data-parallel size, [train], rows per data-parallel rank
CASES: dict[str, tuple[dict[str, Any], int, dict[str, Any], int]] = {
    "one rank": ({}, 1, {}, 2),
    "tp2": ({"tensor": 2}, 1, {}, 2),
    "tp2 sp": ({"tensor": 2, "sequence_parallel": True}, 1, {}, 2),
    "pp2": ({"pipeline": 2}, 1, {}, 4),
    "pp4": ({"pipeline": 4}, 1, {}, 8),
    "pp2 vpp2": ({"pipeline": 2, "virtual_pipeline": 2}, 1, {}, 4),
    "pp2 uneven": ({"pipeline": 2, "layers_on_first_stage": 1, "layers_on_last_stage": 3}, 1, {}, 4),
    "cp2": ({"context": 2}, 1, {}, 2),
    "dp2": ({}, 2, {}, 2),
    "dp2 plain optimizer, bf16": ({}, 2, {"distributed_optimizer": False, "dtype": "bfloat16"}, 2),
    "tp2 pp2 bf16": ({"tensor": 2, "pipeline": 2}, 1, {"dtype": "bfloat16"}, 4),
    "recompute full": ({}, 1, {"recompute": "full"}, 2),
    "recompute selective": ({}, 1, {"recompute": "selective"}, 2),
    "trained tower": ({}, 1, {"train_vision_tower": True}, 2),
}
WITHIN = 0.05


QWEN3 = ("one rank", "cp2", "tp2 pp2 bf16")  # its norms of queries and keys keep further tensors


@pytest.mark.parametrize(("family", "case"), [*(("qwen2", c) for c in CASES), *(("qwen3", c) for c in QWEN3)])
def test_memory_is_what_a_rank_allocates(family: str, case: str) -> None:
    layout, data, train, rows_per_rank = CASES[case]
    parallel, spec = Parallel(**layout), layouts.tiny_spec(family)
    config, rows = layouts.tiny_config(parallel, **train), layouts.rows(rows_per_rank * data)
    row = Row(tokens=layouts.LENGTH, squares=32**2 + 8**2 + 24**2, targets=31, pictures=2)  # as layouts.rows makes them
    setting = Setting(
        spec=spec, parallel=parallel, train=config.train, fp8=config.fp8, objective=config.objective, row=row,
        data=data,
        micro_batches=rows_per_rank, fused=False,
    )  # fmt: skip
    seen = run_layout(plan_world.allocations, parallel, spec, config, rows, data=data)
    for rank, found in enumerate(seen):
        wanted = rank_memory(setting, rank * parallel.pipeline // len(seen))
        for part, size in (
            ("weights", wanted.weights),
            ("gradients", wanted.gradients),
            ("optimizer", wanted.optimizer),
            ("kept", wanted.kept),
        ):
            assert size == pytest.approx(found[part], rel=WITHIN), f"rank {rank}: {part}"
        most = saving(setting, rank * parallel.pipeline // len(seen)).host
        if parallel.virtual_pipeline:
            assert found["saving"] <= most * (1 + WITHIN), "its chunks go one after another"
        else:
            assert most == pytest.approx(found["saving"], rel=WITHIN, abs=1000), f"rank {rank}: saving"

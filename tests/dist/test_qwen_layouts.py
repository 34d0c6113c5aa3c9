"""Qwen2.5-VL and Qwen3-VL: every layout gives one rank's numbers, tied embeddings and DeepStack included."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from sophia_mcore.config.schema import Parallel
from sophia_mcore.errors import SophiaError, UsageError
from tests.support import layouts, qwen_layouts
from tests.support.harness import run_layout

TRAINED = {"train_vision_tower": True, "train_projector": True}
DEEP, FULL, UNPACKED = {"deep": True}, {"recompute": "full"}, {"packed": False}
# name: (layout, data-parallel size, further options)
CASES: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "tp2": ({"tensor": 2}, 1, TRAINED),
    "tp2 sp tied": ({"tensor": 2, "sequence_parallel": True}, 1, {"tied": True, **TRAINED}),
    "pp2 tied": ({"pipeline": 2}, 1, {"tied": True, **TRAINED}),
    "pp2 uneven": ({"pipeline": 2, "layers_on_first_stage": 1}, 1, TRAINED),
    "vpp tied": ({"pipeline": 2, "virtual_pipeline": 2}, 1, {"tied": True, **TRAINED}),
    "cp2": ({"context": 2}, 1, TRAINED),
    "dp2 tied": ({}, 2, {"tied": True, **TRAINED}),
    "dp2 pp2 tied": ({"pipeline": 2}, 2, {"tied": True}),
    "tp2 sp cp2": ({"tensor": 2, "context": 2, "sequence_parallel": True}, 1, TRAINED),
    "pp2 cp2 tied": ({"pipeline": 2, "context": 2}, 1, {"tied": True, **TRAINED}),
    "full recompute vpp": ({"pipeline": 2, "virtual_pipeline": 2}, 1, {**FULL, **TRAINED}),
    "selective recompute tp2": ({"tensor": 2}, 1, {"recompute": "selective", **TRAINED}),
    "unpacked cp2": ({"context": 2}, 1, {**UNPACKED, **TRAINED}),
    "unpacked tp2 sp pp2": ({"tensor": 2, "sequence_parallel": True, "pipeline": 2}, 1, {**UNPACKED, **TRAINED}),
    "frozen tp2": ({"tensor": 2}, 1, {}),
    "only projector tp2 cp2": ({"tensor": 2, "context": 2}, 1, {"train_projector": True}),
    "deep tp2 tied": ({"tensor": 2}, 1, {**DEEP, "tied": True, **TRAINED}),
    "deep tp4 sp": ({"tensor": 4, "sequence_parallel": True}, 1, {**DEEP, **TRAINED}),
    "deep pp2 tied": ({"pipeline": 2}, 1, {**DEEP, "tied": True, **TRAINED}),
    "deep pp2 uneven": ({"pipeline": 2, "layers_on_last_stage": 1}, 1, {**DEEP, **TRAINED}),
    "deep vpp": ({"pipeline": 2, "virtual_pipeline": 2}, 1, {**DEEP, "layers": 8, **TRAINED}),
    "deep cp2": ({"context": 2}, 1, {**DEEP, **TRAINED}),
    "deep cp4": ({"context": 4}, 1, {**DEEP, **TRAINED}),
    "deep dp2": ({}, 2, {**DEEP, **TRAINED}),
    "deep tp2 sp pp2": ({"tensor": 2, "sequence_parallel": True, "pipeline": 2}, 1, {**DEEP, **TRAINED}),
    "deep tp2 sp cp2": ({"tensor": 2, "sequence_parallel": True, "context": 2}, 1, {**DEEP, **TRAINED}),
    "deep full recompute": ({}, 1, {**DEEP, **FULL, **TRAINED}),
    "deep full recompute tp2 sp": ({"tensor": 2, "sequence_parallel": True}, 1, {**DEEP, **FULL, **TRAINED}),
    "deep full recompute pp2 cp2": ({"pipeline": 2, "context": 2}, 1, {**DEEP, **FULL, **TRAINED}),
    "deep full recompute vpp": (
        {"pipeline": 2, "virtual_pipeline": 2}, 1, {**DEEP, **FULL, "layers": 8, **TRAINED}
    ),
    "deep full recompute frozen": ({}, 1, {**DEEP, **FULL}),
    "deep selective recompute pp2": ({"pipeline": 2}, 1, {**DEEP, "recompute": "selective", **TRAINED}),
    "deep unpacked": ({"tensor": 2}, 1, {**DEEP, **UNPACKED, **TRAINED}),
    "deep unpacked cp2": ({"context": 2}, 1, {**DEEP, **UNPACKED}),
    "deep frozen pp2 cp2": ({"pipeline": 2, "context": 2}, 1, DEEP),
    "deep only projector tp2": ({"tensor": 2}, 1, {**DEEP, "train_projector": True}),
}  # fmt: skip

# Each of them joins, or has more ranks of, what others show alone.
SLOW = (
    "dp2 pp2 tied", "pp2 cp2 tied", "only projector tp2 cp2", "deep cp4", "deep tp2 sp cp2",
    "deep full recompute tp2 sp", "deep full recompute pp2 cp2", "deep full recompute frozen",
    "deep selective recompute pp2", "deep unpacked cp2", "deep frozen pp2 cp2", "deep only projector tp2",
)  # fmt: skip


@functools.cache
def reference(**options: Any) -> Any:
    """One rank, without recomputation."""
    return result(Parallel(), **options)


def result(
    parallel: Parallel, data: int = 1, packed: bool = True, deep: bool = False, tied: bool = False, layers: int = 4,
    **train: Any,
) -> layouts.Numbers:  # fmt: skip
    """Losses of the steps, gradients of the first, parameters after the last, put together from all ranks."""
    spec, config = qwen_layouts.tiny_spec(deep, tied, layers), layouts.tiny_config(parallel, **train)
    outcomes = run_layout(layouts.train, parallel, spec, config, qwen_layouts.rows(4, packed), data=data)
    losses = layouts.losses_of_steps(outcomes, parallel, data)

    def together(parts: list[Any]) -> dict[str, torch.Tensor]:
        """A tied head's copy on the last stage must be the embedding, in gradient and in value."""
        found = layouts.together(parts)
        copy = found.pop("language.output_layer.weight", None) if tied else None
        if copy is not None:
            torch.testing.assert_close(copy, found["language.embedding.word_embeddings.weight"], rtol=0, atol=1e-6)
        return found

    gradients = together([part for outcome in outcomes for part in outcome.gradients])
    return losses, gradients, together([part for outcome in outcomes for part in outcome.parameters])


@pytest.mark.parametrize("case", layouts.with_slow(CASES, SLOW))
def test_layout_equals_one_rank(case: str) -> None:
    layout, data, options = CASES[case]
    plain = {name: value for name, value in options.items() if name != "recompute"}
    spec = qwen_layouts.tiny_spec(options.get("deep", False), options.get("tied", False), options.get("layers", 4))
    names = layouts.trained_names(spec, **options)
    layouts.assert_same_training(result(Parallel(**layout), data, **options), reference(**plain), names)


def test_a_first_stage_too_short_for_the_deep_features_is_refused() -> None:
    spec = qwen_layouts.tiny_spec(deep=True, tied=False)
    parallel = Parallel(pipeline=2, virtual_pipeline=2)
    with pytest.raises(UsageError, match="has 1 language layers, but the model adds image features to the first 2"):
        run_layout(layouts.train, parallel, spec, layouts.tiny_config(parallel), qwen_layouts.rows(2))


def test_a_row_without_positions_is_refused() -> None:
    spec = qwen_layouts.tiny_spec(deep=False, tied=False)
    with pytest.raises(SophiaError, match=r"needs position_ids \[3, b, S\]"):
        run_layout(layouts.train, Parallel(), spec, layouts.tiny_config(Parallel()), layouts.rows(1))

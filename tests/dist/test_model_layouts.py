"""Every layout gives one rank's numbers: loss, every element of every gradient, three optimizer steps."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from sophia_mcore.config.schema import Parallel
from tests.support import layouts
from tests.support.harness import run_layout

TRAINED = {"train_vision_tower": True, "train_projector": True}
# name: (layout, data-parallel size, further options)
CASES: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "tp2": ({"tensor": 2}, 1, TRAINED),
    "tp2 sp": ({"tensor": 2, "sequence_parallel": True}, 1, TRAINED),
    "tp4": ({"tensor": 4}, 1, TRAINED),  # more ranks than key-value heads
    "tp4 sp qwen3": ({"tensor": 4, "sequence_parallel": True}, 1, {"family": "qwen3"}),
    "pp2": ({"pipeline": 2}, 1, TRAINED),
    "pp4": ({"pipeline": 4}, 1, {}),
    "pp2 uneven first": ({"pipeline": 2, "layers_on_first_stage": 1}, 1, TRAINED),
    "pp2 uneven last": ({"pipeline": 2, "layers_on_last_stage": 1}, 1, {}),
    "pp4 uneven": ({"pipeline": 4, "layers_on_first_stage": 1, "layers_on_last_stage": 1}, 1, {"layers": 6}),
    "vpp": ({"pipeline": 2, "virtual_pipeline": 2}, 1, TRAINED),
    "vpp tp2 sp": ({"pipeline": 2, "virtual_pipeline": 2, "tensor": 2, "sequence_parallel": True}, 1, TRAINED),
    "vpp uneven": ({"pipeline": 2, "virtual_pipeline": 2, "layers_on_first_stage": 2}, 1, {"layers": 6}),
    "cp2": ({"context": 2}, 1, TRAINED),
    "cp4": ({"context": 4}, 1, TRAINED),
    "dp2": ({}, 2, TRAINED),
    "dp4": ({}, 4, {}),
    "tp2 pp2": ({"tensor": 2, "pipeline": 2}, 1, TRAINED),
    "tp2 sp pp2": ({"tensor": 2, "pipeline": 2, "sequence_parallel": True}, 1, {"family": "qwen3", **TRAINED}),
    "tp2 cp2": ({"tensor": 2, "context": 2}, 1, TRAINED),
    "tp2 sp cp2": ({"tensor": 2, "context": 2, "sequence_parallel": True}, 1, TRAINED),
    "pp2 cp2": ({"pipeline": 2, "context": 2}, 1, TRAINED),
    "vpp cp2": ({"pipeline": 2, "virtual_pipeline": 2, "context": 2}, 1, {}),
    "dp2 tp2": ({"tensor": 2}, 2, TRAINED),
    "dp2 pp2": ({"pipeline": 2}, 2, TRAINED),
    "dp2 cp2": ({"context": 2}, 2, TRAINED),
    "dp2 tp2 sp": ({"tensor": 2, "sequence_parallel": True}, 2, {}),
    "dp2 vpp": ({"pipeline": 2, "virtual_pipeline": 2}, 2, TRAINED),
    "vpp uneven tp2 sp": (
        {"pipeline": 2, "virtual_pipeline": 2, "layers_on_first_stage": 2, "tensor": 2, "sequence_parallel": True},
        1,
        {"layers": 6},
    ),
    "qwen3 tp2": ({"tensor": 2}, 1, {"family": "qwen3", **TRAINED}),
    "qwen3 cp2": ({"context": 2}, 1, {"family": "qwen3"}),
    "internlm2 tp2 sp": ({"tensor": 2, "sequence_parallel": True}, 1, {"family": "internlm2", **TRAINED}),
    "300m tp2": ({"tensor": 2}, 1, {"six_billion": False, **TRAINED}),
    "300m tp2 cp2": ({"tensor": 2, "context": 2}, 1, {"six_billion": False, **TRAINED}),
    "only projector tp2 sp": ({"tensor": 2, "sequence_parallel": True}, 1, {"train_projector": True}),
    "only projector tp2 cp2": ({"tensor": 2, "context": 2}, 1, {"train_projector": True}),
    "only tower tp2": ({"tensor": 2}, 1, {"train_vision_tower": True}),
    "frozen tp2": ({"tensor": 2}, 1, {}),
    "frozen tp2 cp2": ({"tensor": 2, "context": 2}, 1, {}),
    "frozen tp2 pp2": ({"tensor": 2, "pipeline": 2}, 1, {}),
    "unpacked tp2 sp": ({"tensor": 2, "sequence_parallel": True}, 1, {"packed": False, **TRAINED}),
    "unpacked pp2": ({"pipeline": 2}, 1, {"packed": False}),
    "unpacked cp2": ({"context": 2}, 1, {"packed": False, **TRAINED}),
    "unpacked tp2 cp2": ({"tensor": 2, "context": 2}, 1, {"packed": False}),
    "unpacked pp2 cp2": ({"pipeline": 2, "context": 2}, 1, {"packed": False}),
    "unpacked vpp": ({"pipeline": 2, "virtual_pipeline": 2}, 1, {"packed": False}),
    "unpacked dp2": ({}, 2, {"packed": False}),
    "full recompute": ({}, 1, {"recompute": "full", **TRAINED}),
    "full recompute tp2 sp": ({"tensor": 2, "sequence_parallel": True}, 1, {"recompute": "full", **TRAINED}),
    "full recompute vpp": ({"pipeline": 2, "virtual_pipeline": 2}, 1, {"recompute": "full"}),
    "full recompute cp2": ({"context": 2}, 1, {"recompute": "full"}),
    "selective recompute tp2": ({"tensor": 2}, 1, {"recompute": "selective", **TRAINED}),
    "selective recompute pp2 cp2": ({"pipeline": 2, "context": 2}, 1, {"recompute": "selective"}),
    "full recompute pp2": ({"pipeline": 2}, 1, {"recompute": "full", **TRAINED}),
    "selective recompute vpp": ({"pipeline": 2, "virtual_pipeline": 2}, 1, {"recompute": "selective"}),
    "selective recompute unpacked": ({"tensor": 2}, 1, {"recompute": "selective", "packed": False}),
}

# Each of them joins, or has more ranks of, what others show alone.
SLOW = (
    "cp4", "dp4", "tp2 cp2", "pp2 cp2", "dp2 cp2", "dp2 tp2 sp", "vpp uneven tp2 sp", "300m tp2 cp2",
    "only projector tp2 cp2", "frozen tp2 cp2", "frozen tp2 pp2", "unpacked tp2 cp2", "unpacked pp2 cp2",
    "full recompute cp2", "selective recompute pp2 cp2", "selective recompute vpp", "selective recompute unpacked",
)  # fmt: skip


@functools.cache
def reference(**options: Any) -> Any:
    """One rank, without recomputation."""
    return result(Parallel(), **options)


def result(
    parallel: Parallel, data: int = 1, packed: bool = True, family: str = "qwen2", six_billion: bool = True,
    layers: int = 4, **train: Any,
) -> layouts.Numbers:  # fmt: skip
    """Losses of the steps, gradients of the first, parameters after the last, put together from all ranks."""
    spec, config = layouts.tiny_spec(family, six_billion, layers), layouts.tiny_config(parallel, **train)
    outcomes = run_layout(layouts.train, parallel, spec, config, layouts.rows(4, packed), data=data)
    losses = layouts.losses_of_steps(outcomes, parallel, data)
    gradients = layouts.together([part for outcome in outcomes for part in outcome.gradients])
    parameters = layouts.together([part for outcome in outcomes for part in outcome.parameters])
    return losses, gradients, parameters


@pytest.mark.parametrize("case", layouts.with_slow(CASES, SLOW))
def test_layout_equals_one_rank(case: str) -> None:
    layout, data, options = CASES[case]
    plain = {name: value for name, value in options.items() if name != "recompute"}
    spec = layouts.tiny_spec(options.get("family", "qwen2"), options.get("six_billion", True), options.get("layers", 4))
    names = layouts.trained_names(spec, **options)
    layouts.assert_same_training(result(Parallel(**layout), data, **options), reference(**plain), names)


def test_what_is_frozen_gets_no_gradient() -> None:
    def parts(**options: bool) -> set[str]:
        return {name.split(".")[0] for name in reference(**options)[1]}

    assert parts() == {"language"}
    assert parts(train_projector=True) == {"language", "projector"}
    assert parts(train_vision_tower=True) == {"language", "vision"}
    assert parts(train_vision_tower=True, train_projector=True) == {"language", "projector", "vision"}

"""Training through the CUDA branch on gloo ranks against the plain parts: gradients of every parameter, FP8 contexts.

Both sides run the same layout through megatron-core's schedules, in fp32: the difference is the path, not rounding.
"""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest import mock

import pytest
import torch

from sophia_mcore.config.schema import Config, Fp8, Fp8Check, Parallel
from sophia_mcore.parallel import backend as backends
from sophia_mcore.parallel import groups as groups_module
from sophia_mcore.parallel.backend import Backend
from sophia_mcore.pretrained.spec import ModelSpec
from tests.cuda_path import stand_in
from tests.cuda_path.shim import Call, shimmed
from tests.gpu.test_te_spec import outcome
from tests.support import layouts, pretended_cuda
from tests.support.harness import run

# the contexts of attention in fp32 under context parallelism, which a real device refuses, are those of bf16
UNREFUSED = mock.patch.object(Backend, "check_attention", lambda *_: None)
HARMLESS = {"library", "member"}  # loading, not a kernel
P = Parallel
SP = {"sequence_parallel": True}
TRAINED = {"train_vision_tower": True, "train_projector": True}
RECIPES = {
    "none": "", "tensorwise": "Float8CurrentScaling", "delayed": "TEDelayedScaling", "blockwise": "Float8BlockScaling",
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "packed": {},
    "unpacked": {"packed": False},
    "qwen3": {"family": "qwen3"},
    "internlm2, 300M tower": {"family": "internlm2", "six_billion": False},
    "tower and projector trained": {"train": TRAINED},
    "tp2": {"parallel": P(tensor=2)},
    "tp2 sp qwen3 trained tower": {"parallel": P(tensor=2, **SP), "family": "qwen3", "train": TRAINED},
    "tp4 sp": {"parallel": P(tensor=4, **SP)},
    "cp2": {"parallel": P(context=2)},
    "cp2 unpacked": {"parallel": P(context=2), "packed": False},
    "tp2 cp2 sp": {"parallel": P(tensor=2, context=2, **SP)},
    "pp2, outputs freed": {"parallel": P(pipeline=2)},
    "pp2 vpp2": {"parallel": P(pipeline=2, virtual_pipeline=2), "backend": {"ordered_sends": False}},  # gloo's limit
    "dp2": {"data": 2},
    "tp2 pp2 sp": {"parallel": P(tensor=2, pipeline=2, **SP)},
    "recompute selective": {"train": {"recompute": "selective"}},
    "recompute full, tp2 sp": {"parallel": P(tensor=2, **SP), "train": {"recompute": "full"}},
    "without Transformer Engine, tp2 sp": {"parallel": P(tensor=2, **SP), "backend": {"transformer_engine": False}},
    "tensorwise": {"fp8": {"recipe": "tensorwise"}},
    "delayed, recompute full": {"fp8": {"recipe": "delayed"}, "train": {"recompute": "full"}},
    "blockwise": {"fp8": {"recipe": "blockwise"}},
    "tensorwise, first and last in bf16": {
        "fp8": {"recipe": "tensorwise", "layers_at_start_in_bf16": 1, "layers_at_end_in_bf16": 1},
    },
    "tensorwise, layer 2 and attention in bf16": {
        "fp8": {"recipe": "tensorwise", "layers_in_bf16": (2,), "attention_in_bf16": True},
    },
    "tensorwise, tp2 sp, recompute full": {
        "fp8": {"recipe": "tensorwise"}, "parallel": P(tensor=2, **SP), "train": {"recompute": "full"},
    },
    "tensorwise, cp2": {"fp8": {"recipe": "tensorwise"}, "parallel": P(context=2)},
}  # fmt: skip


def work(cuda: bool, changes: dict[str, Any], parallel: Parallel, spec: ModelSpec, config: Config, batch: Any) -> Any:
    """(outcome, calls of Transformer Engine's modules, kernels that were asked for) of this rank."""
    stand_in.CALLS.clear()
    chosen = pretended_cuda.backend(**changes) if cuda else backends.select(kind="cpu")
    with shimmed() if cuda else chosen.adapt() as calls, UNREFUSED:
        groups = groups_module.initialize(parallel, chosen, timeout_seconds=60, gloo_copies=False)
        outcome = layouts.train(groups, chosen, spec, config, batch)
        return outcome, Counter(calls or []), {n for n in stand_in.CALLS if n not in HARMLESS}


def worst(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> tuple[float, str]:
    """Largest relative error over the tensors, and whose."""
    assert mine.keys() == other.keys()
    return max(
        (float((mine[n].double() - other[n].double()).norm() / other[n].double().norm().clamp_min(1e-6)), n)
        for n in mine
    )


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_plain_parts(name: str) -> None:
    case = CASES[name]
    parallel: Parallel = case.get("parallel", P())
    spec = layouts.tiny_spec(case.get("family", "qwen2"), six_billion=case.get("six_billion", True))
    config = layouts.tiny_config(parallel, **case.get("train", {}))
    fp8 = Fp8(**case["fp8"], check=Fp8Check(skip=True)) if "fp8" in case else Fp8()
    batch = layouts.rows(4, case.get("packed", True))
    ranks, changes = parallel.model_ranks * case.get("data", 1), case.get("backend", {})
    plain = run(work, ranks, False, {}, parallel, spec, config, batch)
    cuda = run(work, ranks, True, changes, parallel, spec, config.model_copy(update={"fp8": fp8}), batch)

    gradients = [layouts.together([p for o, _, _ in side for p in o.gradients]) for side in (cuda, plain)]
    error, where = worst(*gradients)
    assert error < 1e-4 and len(gradients[0]) > 20, where
    losses = [next(o.losses for o, _, _ in side if o.losses) for side in (cuda, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert {kernel for _, _, kernels in cuda for kernel in kernels} == set(), "a kernel was asked for"
    calls = sum((c for _, c, _ in cuda), Counter())
    if changes.get("transformer_engine", True):
        assert_production_path(calls, spec, fp8, case.get("packed", True))
    else:
        assert not calls


def assert_production_path(calls: Counter[Call], spec: ModelSpec, fp8: Fp8, packed: bool) -> None:
    """Transformer Engine's modules did the decoder's work, in the form and under the recipe that were asked for."""
    kinds = {call.kind for call in calls}
    assert kinds == {"linear", "norm linear", "norm", "attention", "rotary"}
    assert {call.how for call in calls if call.kind in ("attention", "rotary")} == {"thd" if packed else "sbhd"}
    recipe = RECIPES[fp8.recipe]
    linear = Counter({call: n for call, n in calls.items() if call.kind.endswith("linear")})
    found = {call.fp8 for call in linear}
    layers = range(spec.language.num_layers)
    kept = [layer for layer in layers if fp8.in_bf16(layer, len(layers))]
    share = sum(n for call, n in linear.items() if call.fp8) / linear.total()
    each = 0.5 if fp8.attention_in_bf16 else 1.0  # two of a layer's four products
    wanted = each * (len(layers) - len(kept)) / len(layers) if recipe else 0.0
    assert share == pytest.approx(wanted) and found <= {"", recipe}
    if recipe:
        assert any(call.first for call in linear) and any(call.first is False for call in linear), "one renewal a step"


def test_the_comparison_for_a_gpu_runs_where_apex_is_installed() -> None:
    """apex adds weight gradients to buffers of DistributedDataParallel, which test_te_spec.py does not use."""
    apex = pretended_cuda.backend(fused_weight_gradient=True)
    with shimmed() as calls, mock.patch.object(backends, "select", lambda **_: apex):
        plain = outcome(False, "float32", True, "qwen2")
        assert not calls
        fused = outcome(True, "float32", True, "qwen2")
    error, where = worst(fused, plain)
    assert calls and error < 1e-4 and len(fused) > 40, where

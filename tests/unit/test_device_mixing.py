"""No CPU tensor meets the device's: the same code on meta tensors, which refuse to meet CPU tensors as a GPU's do.

Meta tensors have no values, so the few places that ask for values are given an answer here; on a GPU each of them waits
for the device, and none mixes devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sophia_mcore.batch.collate import PackedBatch, collate
from sophia_mcore.batch.samples import AUXILIARY, FRESH, STORED
from sophia_mcore.batch.tokenize import TokenizedSample
from sophia_mcore.config.rl import RlObjective
from sophia_mcore.config.schema import Objective
from sophia_mcore.model import images
from sophia_mcore.model.rotary import mrope_angles
from sophia_mcore.model.vision import kind_of
from sophia_mcore.objective import logprob
from sophia_mcore.objective.losses import OBJECTIVES, Tokens, objective_loss
from sophia_mcore.pretrained.spec import ModelSpec
from tests.support.qwen_models import config_of
from tests.support.real_models import MODELS

DEVICE = torch.device("meta")
T, H, V = 1024, 3584, 37_920


def test_meta_tensors_refuse_to_meet_cpu_tensors() -> None:
    """What the other tests here rest on."""
    with pytest.raises(RuntimeError, match="not on the expected device meta"):
        torch.empty(2, device=DEVICE) + torch.ones(2)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE, requires_grad=grad)


def short(name: str) -> ModelSpec:
    """A released model with two layers in its tower, everything else at real size."""
    spec = MODELS[name] if name in MODELS else ModelSpec.from_config(config_of(name))
    changes: dict[str, Any] = {"num_layers": 2}
    changes |= {"full_layers": (1,)} if hasattr(spec.vision, "full_layers") else {}
    changes |= {"deepstack": (0, 1)} if hasattr(spec.vision, "deepstack") else {}
    projector = replace(spec.projector, deep=2) if "deepstack" in changes else spec.projector
    return replace(spec, vision=replace(spec.vision, **changes), projector=projector)


@pytest.mark.parametrize("name", ["internvl3_8b", "internvl3_38b", "Qwen2.5-VL-7B", "Qwen3-VL-8B"])
@pytest.mark.parametrize("recompute", [False, True])
def test_towers_and_projectors(name: str, recompute: bool) -> None:
    spec = short(name)
    kind = kind_of(spec)
    tower, projector = kind.build(spec.vision, spec.projector, torch.bfloat16, DEVICE, recompute)
    blank = kind.blank(spec.vision)
    grids = [(1, 1)] * 3 if name.startswith("internvl") else [(12, 22), (4, 6), (12, 22)]
    rows = sum(h * w for h, w in grids)
    features = projector(tower(empty(rows, *blank.values.shape[1:], dtype=torch.float32), grids))
    assert spec.language.hidden_size == features.shape[-1] and features.device == DEVICE
    features.float().sum().backward()
    gradients = [p.grad for module in (tower, projector) for p in module.parameters()]
    assert all(g is not None and g.device == DEVICE for g in gradients)


def test_features_take_their_places_and_positions_become_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec.from_config(config_of("Qwen2.5-VL-7B"))
    angles = mrope_angles(empty(3, 1, T, dtype=torch.long), spec.language)
    assert angles.device == DEVICE and T in angles.shape
    hidden, features = empty(T, 1, H, grad=True), empty(66, H, grad=True)
    ids = empty(1, T, dtype=torch.long)
    found_places = torch.empty(66, 1, dtype=torch.long, device=DEVICE)
    monkeypatch.setattr(Tensor, "nonzero", lambda _: found_places)  # where they are is a value
    found = images.fill_image_tokens(hidden, features, ids, 5)
    (found.float().sum() + images.spread_image_tokens(features, ids, 5).float().sum()).backward()
    assert found.device == DEVICE and features.grad is not None and features.grad.device == DEVICE


def row() -> PackedBatch:
    """A packed row of three samples on the device, every kind of token in it, log-probs of all sides beside it."""
    ids = np.arange(9, dtype=np.int32)
    samples = [
        TokenizedSample(
            id=f"s{kind}",
            source="tests",
            input_ids=ids,
            prompt_tokens=4,
            images=(),
            image_sizes=(),
            weight=1.0,
            kind=kind,
        )
        for kind in (STORED, FRESH, AUXILIARY)
    ]
    known = {sample.id: np.zeros(5, np.float32) for sample in samples}
    made = collate(
        samples, length=64, sequence_multiple=2, pixels=None, row_shape=(1176,), behaviour_logprobs=known,
        rollout_logprobs=known, reference_logprobs=known,
    )  # fmt: skip
    return made.to(DEVICE)


@pytest.mark.parametrize("normalization", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("name", [*sorted(loss().name for loss in OBJECTIVES), "on-policy"])
def test_objectives_and_their_metrics(name: str, normalization: str) -> None:
    if name == "on-policy":
        given = RlObjective(correction="tis", kl=0.1, normalization=normalization)
        config: Any = Objective(
            loss={"name": "grpo"}, behaviour="recorded", normalization=normalization, correction=given.correction,
            kl=given.kl,
        )  # fmt: skip
    else:
        config = Objective.model_validate(
            {"loss": {"name": name}, "behaviour": "reference", "normalization": normalization}
        )
    logprobs = empty(1, 64, dtype=torch.float32, grad=True)
    found = objective_loss(logprobs, Tokens.from_batch(row(), normalization, 0.5), config)
    found.sum.backward()
    assert found.sum.device == DEVICE and logprobs.grad is not None and logprobs.grad.device == DEVICE
    assert {sums.values.device for sums in found.metrics.values()} == {DEVICE}


COEFFICIENTS: dict[str, Any] = {
    "recomputed": (256, None),
    "blocks": (256, lambda: empty(T, dtype=torch.float32)),
    "chunks": (512, lambda: empty(T, dtype=torch.float32)),
    "chunks, by log-prob": (512, lambda: lambda logprobs, rows: logprobs.exp()),
}


@pytest.mark.parametrize("way", COEFFICIENTS)
def test_log_probs_and_their_gradients(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.empty(T, dtype=torch.long, device=DEVICE)
    monkeypatch.setattr(logprob, "_wanted_rows", lambda *_: rows)
    monkeypatch.setattr(logprob, "_common_factor", lambda grad, used: torch.ones((), device=grad.device))
    chunk, coefficients = COEFFICIENTS[way]
    given: Callable[..., Any] | Tensor | None = coefficients and coefficients()
    hidden, weight, targets = empty(T, H, grad=True), empty(V, H, grad=True), empty(T, dtype=torch.long)
    found = logprob.token_logprobs(
        hidden, weight, targets, vocab_size=V, chunk_tokens=chunk, coefficients_T=given
    )  # fmt: skip
    found.sum().backward()
    assert found.device == DEVICE and hidden.grad is not None and weight.grad is not None
    assert hidden.grad.device == weight.grad.device == DEVICE and weight.grad.dtype == torch.bfloat16
    entropies = logprob.token_entropies(hidden, weight, targets, vocab_size=V, chunk_tokens=chunk)
    assert entropies.device == DEVICE

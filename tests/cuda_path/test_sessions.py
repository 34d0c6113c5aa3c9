"""Whole training sessions through the CUDA branch: load, measure, steps, checkpoints, resume; and the CPU beside it.

The plain side runs as on a CPU, in a process where Transformer Engine is installed: megatron-core must not take its
optimizer and its kernels there.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from sophia_mcore.config.schema import Config
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.train.checkpoint_folder import list_checkpoints
from tests.cuda_path.shim import shimmed
from tests.support import pretended_cuda, train_world
from tests.support.harness import run

CASES: dict[str, dict[str, Any]] = {
    "one rank": {},
    "bf16, tp2 sp": {"train": {"dtype": "bfloat16"}, "parallel": {"tensor": 2, "sequence_parallel": True}},
    "dp2": {"parallel": {"processes": 2}},
    "tp2 sp": {"parallel": {"tensor": 2, "sequence_parallel": True}},
    "trained tower, asynchronous saves": {
        "train": {"train_vision_tower": True, "train_projector": True, "save_asynchronously": True}
    },
    "tensorwise": {"fp8": {"recipe": "tensorwise", "check": {"skip": True}}},
}


def cuda(config: Config, folder: RunFolder) -> Counter[str]:
    """Train on this rank as on a GPU; the modules' calls by kind."""
    with shimmed() as calls, pretended_cuda.selected(pretended_cuda.backend()):
        train_world.train(config, folder)
        return Counter(call.kind for call in calls)


def assert_production_path(calls: Counter[str], updates: int) -> None:
    assert calls["attention"] > 0 and calls["adam"] == updates, calls


def newest(folder: RunFolder) -> dict[str, torch.Tensor]:
    return train_world.tensors(list_checkpoints(folder.round(0).checkpoints)[0])


def assert_same(folder: RunFolder, other: RunFolder) -> None:
    assert train_world.losses(folder) == pytest.approx(train_world.losses(other), abs=1e-3)
    mine, theirs = newest(folder), newest(other)
    assert mine.keys() == theirs.keys()
    # each element, or the norm: AdamW makes whole steps of gradients that are mere rounding
    for name, value in mine.items():
        near = torch.allclose(value, theirs[name], rtol=1e-4, atol=5e-4)
        assert near or (value - theirs[name]).norm() < 4e-3 * theirs[name].norm(), name
    assert after(folder) == pytest.approx(after(other), abs=1e-3)


def assert_near(folder: RunFolder, other: RunFolder) -> None:
    """The same session in bf16, whose numbers have 8 bits: neighbours are up to 2**-7 of their value apart.

    Log-probs and weights may be neighbours. A gradient has gone through every product of both layers, forward and
    backward, each rounded, and six updates: 7% of the norm of a moment was seen, 12.5% is the bound. A bias begins at 0
    and is the sum of AdamW's six steps, as large for a gradient that is mere rounding as for others: 16% was seen, 25%
    is the bound. A bias without its steps would be 100% apart.
    """
    assert train_world.losses(folder) == pytest.approx(train_world.losses(other), rel=2**-7)
    assert after(folder) == pytest.approx(after(other), rel=2**-7)
    mine, theirs = newest(folder), newest(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        bound = 2**-3 if ".exp_avg" in name else 2**-2 if name.endswith("linear_qkv.bias") else 2**-7
        error, norm = (value.float() - theirs[name].float()).norm(), theirs[name].float().norm()
        assert error <= bound * norm, (name, error / norm)


def after(folder: RunFolder) -> float:
    """The mean log-prob of the measured samples under the trained weights."""
    return json.loads((folder.round(0).train / "summary.json").read_text())["logprob_after"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_world.make_policy(tmp_path_factory.mktemp("models") / "policy")


@pytest.mark.parametrize("name", CASES)
def test_a_session_is_that_of_the_cpu(tmp_path: Path, policy: Path, name: str) -> None:
    sections, folders = CASES[name], []
    for path in ("plain", "cuda"):
        given = sections if path == "cuda" else {k: v for k, v in sections.items() if k != "fp8"}
        config, folder = train_world.make_run(tmp_path / path, policy, **given)
        ranks = config.parallel.world_size
        if path == "cuda":
            for calls in run(cuda, ranks, config, folder):
                assert_production_path(calls, updates=6)
        else:
            assert run(train_world.train, ranks, config, folder) == [True] * ranks
        folders.append(folder)
    (assert_near if name.startswith("bf16") else assert_same)(folders[1], folders[0])


@pytest.mark.parametrize("first", ["cpu", "cuda"])
@pytest.mark.parametrize("second", ["cpu", "cuda"])
def test_a_session_goes_on_from_the_checkpoint_of_either_path(
    tmp_path: Path, policy: Path, first: str, second: str
) -> None:
    steady = {"train": {"final_learning_rate_fraction": 1.0}}
    config, whole = train_world.make_run(tmp_path / "whole", policy, **steady)
    assert run(train_world.train, 1, config, whole) == [True]
    _, folder = train_world.make_run(tmp_path / "parts", policy, **steady)
    for path, steps in ((first, 4), (second, 6)):
        config = train_world.make_config(folder.path, policy, train={**steady["train"], "steps": steps})
        if path == "cuda":
            (calls,) = run(cuda, 1, config, folder)
            assert_production_path(calls, updates=4 if steps == 4 else 2)
        else:
            assert run(train_world.train, 1, config, folder) == [True]
        if steps == 4:
            (folder.round(0).train / "summary.json").unlink()
    assert len(train_world.losses(folder)) == 6
    assert_same(folder, whole)

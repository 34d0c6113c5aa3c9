"""Training a round of tiny Qwen models, tied embeddings and DeepStack included: every layout, resuming, export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sophia_mcore.store.layout import RunFolder
from sophia_mcore.train.checkpoint_folder import list_checkpoints
from sophia_mcore.weights.export import export_hf
from tests.support import train_world
from tests.support.harness import RankError, run
from tests.support.tiny_qwen import save_qwen_vl

LAYOUTS = {
    "pp2": (2, {"parallel": {"pipeline": 2}}),
    # the distributed optimizer puts the tied embedding into a bucket that these odd sizes would pad: refused
    "tp2 pp2 sp": (
        4,
        {
            "parallel": {"tensor": 2, "pipeline": 2, "sequence_parallel": True},
            "train": {"distributed_optimizer": False},
        },
    ),
    "dp2 plain optimizer": (2, {"train": {"distributed_optimizer": False}}),
    "dp2 pp2": (4, {"parallel": {"pipeline": 2}}),
    "cp2": (2, {"parallel": {"context": 2}}),
}
TIED = "language.embedding.word_embeddings.weight"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-VL with tied embeddings."""
    return save_qwen_vl(tmp_path_factory.mktemp("models") / "policy", tied=True)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> RunFolder:
    config, folder = train_world.make_run(tmp_path_factory.mktemp("one") / "run", policy)
    assert run(train_world.train, 1, config, folder) == [True]
    return folder


def norms(folder: RunFolder) -> list[float]:
    lines = (folder.round(0).train / "metrics.jsonl").read_text().splitlines()
    return [line["gradient_norm"] for line in map(json.loads, lines) if "gradient_norm" in line]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_the_same(layout: str, tmp_path: Path, policy: Path, one_rank: RunFolder) -> None:
    world, sections = LAYOUTS[layout]
    config, folder = train_world.make_run(tmp_path / "run", policy, **sections)
    assert run(train_world.train, world, config, folder) == [True] * world
    assert train_world.losses(folder) == pytest.approx(train_world.losses(one_rank), rel=2e-4)
    assert norms(folder) == pytest.approx(norms(one_rank), rel=2e-3), "a tied head must not count twice"
    mine, theirs = (train_world.tensors(list_checkpoints(f.round(0).checkpoints)[0]) for f in (folder, one_rank))
    names = [name for name in theirs if name.endswith("weight") and "optimizer" not in name]
    assert any(name.endswith(TIED) for name in names) and not any("output_layer" in name for name in mine)
    for name in names:
        rows = min(len(mine[name]), len(theirs[name]))  # the vocabulary's padding
        torch.testing.assert_close(mine[name][:rows], theirs[name][:rows], rtol=1e-3, atol=2e-4, msg=name)


def test_it_learns_and_the_export_has_no_head(one_rank: RunFolder, policy: Path, tmp_path: Path) -> None:
    found = train_world.losses(one_rank)
    assert found[-1] < found[0]
    export_hf(list_checkpoints(one_rank.round(0).checkpoints)[0], policy, tmp_path / "out")
    new, old = load_file(tmp_path / "out" / "model.safetensors"), load_file(policy / "model.safetensors")
    assert new.keys() == old.keys() and "lm_head.weight" not in new
    changed = {name for name in new if not torch.equal(new[name], old[name])}
    assert changed and not any("visual" in name for name in changed), "the tower is frozen"


def test_deepstack_trains_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    policy = save_qwen_vl(tmp_path / "policy", deep=True)
    train = {"train_vision_tower": True, "train_projector": True, "recompute": "full"}
    whole, folder = train_world.make_run(tmp_path / "whole", policy, train=train)
    assert run(train_world.train, 2, whole, folder) == [True] * 2
    half, other = train_world.make_run(tmp_path / "half", policy, train=train)

    def stop(job: object, step: int) -> None:
        if step == 3:
            raise RuntimeError("stopped after three steps")

    with pytest.raises(RankError, match="RuntimeError: stopped after three steps"):
        run(train_world.train, 2, half, other, stop)
    assert list_checkpoints(other.round(0).checkpoints), "it goes on from here"
    assert run(train_world.train, 2, half, other) == [True] * 2
    mine, theirs = (train_world.tensors(list_checkpoints(f.round(0).checkpoints)[0]) for f in (folder, other))
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []

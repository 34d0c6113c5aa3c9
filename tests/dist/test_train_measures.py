"""What a run measures beside its loss: the gap between trainer and sampling engine, and the entropy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config.schema import Config
from sophia_mcore.config.schema import TransformersEngine as EngineConfig
from sophia_mcore.generate.captions import ask_captions, describe_prompt
from sophia_mcore.generate.transformers_engine import TransformersEngine
from sophia_mcore.pretrained.family import ImageLimits
from sophia_mcore.records import Caption, Kept
from sophia_mcore.report.summary import _round_line
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import read_shard, write_shard
from sophia_mcore.track.metrics import read_metrics
from tests.support import train_world
from tests.support.harness import run

FEW = {"steps": 1, "save_every_steps": 9}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_world.make_policy(tmp_path_factory.mktemp("policy") / "model")


def world(folder: Path, policy: Path, **sections: Any) -> tuple[Config, RunFolder]:
    small = {"per_image": 2, "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 12}}
    prompt = folder.with_suffix(".txt")
    prompt.write_text("Describe it.")
    return train_world.make_run(folder, policy, captions={**small, "prompt_file": prompt}, train=FEW, **sections)


@pytest.fixture(scope="module")
def captions(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Caption]:
    """Sampled from transformers' own implementation of the model."""
    config, folder = world(tmp_path_factory.mktemp("sampled") / "run", policy)
    engine = TransformersEngine(EngineConfig(kind="transformers", dtype="float32"), policy, ImageLimits(max_tiles=1))
    images = sorted({row.images for row in read_shard(folder.round(0).kept_file, Kept) if row.images})
    found = []
    for image in images:
        asked = ask_captions(Round(config, folder, 0), describe_prompt(config), image, ImageStore(folder.images))
        completions = engine.generate([one.request for one in asked])
        found += [one.record(done, "digest") for one, done in zip(asked, completions, strict=True)]
    assert len(found) > 5 and all(caption.token_logprobs for caption in found)
    return found


def trained(config: Config, folder: RunFolder, ranks: int) -> dict[str, Any]:
    assert run(train_world.train, ranks, config, folder) == [True] * ranks
    return json.loads((folder.round(0).train / "summary.json").read_text())


@pytest.mark.parametrize(
    ("layout", "ranks"),
    [({}, 1), ({"tensor": 2, "pipeline": 2, "sequence_parallel": True}, 4), ({"context": 2, "processes": 4}, 4)],
)
def test_trainer_and_engine_agree(tmp_path, policy, captions, layout, ranks, capfd):
    config, folder = world(tmp_path / "run", policy, parallel=layout)
    write_shard(folder.round(0).captions / "0.parquet", captions, Caption)
    summary = trained(config, folder, ranks)
    gap = summary["rollout_gap"]
    assert gap["tokens"] > 20 and 0 <= gap["mean"] <= gap["p99"] <= gap["max"] < 1e-3 and gap["share_beyond"] == 0
    assert "warning: trainer and sampling" not in capfd.readouterr().err
    lines = read_metrics(folder.round(0).train / "metrics.jsonl")
    assert [line["rollout_gap_mean"] for line in lines if "rollout_gap_mean" in line] == [gap["mean"]]
    assert "trainer against sampling engine 0.000" in _round_line({"round": 0, "train": summary})


def test_a_gap_is_found_and_warned_of(tmp_path, policy, captions, capfd):
    wrong = [replace(row, token_logprobs=tuple(value - 0.5 for value in row.token_logprobs)) for row in captions]
    config, folder = world(tmp_path / "run", policy)
    write_shard(folder.round(0).captions / "0.parquet", wrong, Caption)
    summary = trained(config, folder, 1)
    assert summary["rollout_gap"]["mean"] == pytest.approx(0.5, abs=1e-3)
    assert summary["rollout_gap"]["share_beyond"] == 1.0
    assert "disagree about the policy" in capfd.readouterr().err
    assert "TOO FAR APART" in _round_line({"round": 0, "train": summary})


def test_other_sampling_is_not_compared(tmp_path, policy, captions):
    """A log-prob under another distribution says nothing about the trainer."""
    cold = [replace(row, temperature=0.7) for row in captions]
    config, folder = world(tmp_path / "run", policy)
    write_shard(folder.round(0).captions / "0.parquet", cold, Caption)
    assert trained(config, folder, 1)["rollout_gap"] is None


def test_entropy_is_logged_when_asked_for(tmp_path, policy):
    values = {}
    for name, layout, ranks in (("one", {}, 1), ("cut", {"tensor": 2, "context": 2, "sequence_parallel": True}, 4)):
        config, folder = world(tmp_path / name, policy, parallel=layout, objective={"log_entropy": True})
        trained(config, folder, ranks)
        lines = read_metrics(folder.round(0).train / "metrics.jsonl")
        values[name] = [line["entropy"] for line in lines if "entropy" in line]
    assert len(values["one"]) == 1 and 0.1 < values["one"][0] < 10
    assert values["cut"] == pytest.approx(values["one"], rel=1e-4)
    config, folder = world(tmp_path / "off", policy)
    trained(config, folder, 1)
    assert not any("entropy" in line for line in read_metrics(folder.round(0).train / "metrics.jsonl"))


def test_gradient_norm_by_term(tmp_path, policy):
    """Kept trajectories and further data: two norms that fit the whole one, at any layout; training is not touched."""
    pairs = [{"id": str(i), "question": f"{i}+1?", "response": f"It is {i + 1}."} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    mixture = {"path": tmp_path / "pairs.jsonl", "name": "sums", "share": 0.5}
    found, losses = {}, {}
    four = {"tensor": 2, "pipeline": 2, "sequence_parallel": True}
    for name, layout, ranks, every in (("one", {}, 1, 2), ("cut", four, 4, 2), ("off", {}, 1, 0)):
        config, folder = world(tmp_path / name, policy, parallel=layout, batch={"mixtures": [mixture]})
        train = config.train.model_copy(update={"steps": 3, "term_gradients_every_steps": every})
        trained(config.model_copy(update={"train": train}), folder, ranks)
        found[name] = [line for line in read_metrics(folder.round(0).train / "metrics.jsonl") if "loss" in line]
        losses[name] = train_world.losses(folder)
    names = ("gradient_norm_positive", "gradient_norm_supervised")
    assert [all(name in line for name in names) for line in found["one"]] == [True, False, True]
    assert not any(key.startswith("gradient_norm_") for line in found["off"] for key in line)
    assert losses["one"] == losses["off"]
    positive, supervised, whole = (found["one"][0][name] for name in (*names, "gradient_norm"))
    assert abs(positive - supervised) < whole < positive + supervised
    for line, other in zip(found["one"], found["cut"], strict=True):
        assert all(line[name] == pytest.approx(other[name], rel=1e-3) for name in names if name in line)

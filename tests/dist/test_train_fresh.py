"""Fresh trajectories: sampled from the policy by an engine, mixed with the stored ones, divided by what they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config.schema import Config
from sophia_mcore.config.schema import TransformersEngine as EngineConfig
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.answers import generate_fresh
from sophia_mcore.generate.transformers_engine import TransformersEngine
from sophia_mcore.pretrained.family import ImageLimits
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Answer, Kept, Question
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import read_folder, read_shard, write_shard
from sophia_mcore.track.metrics import read_metrics
from tests.support import train_world
from tests.support.harness import run

# exp(R) weights: what random weights babble is never right, and teaches all the same
MIXED = {"loss": {"name": "awr"}, "trajectories": "kept", "fresh_share": 0.5}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_world.make_policy(tmp_path_factory.mktemp("policy") / "model")


def world(folder: Path, policy: Path, objective: dict[str, Any], **sections: Any) -> tuple[Config, RunFolder]:
    prompt = folder.with_suffix(".txt")
    prompt.write_text("Think.")
    config, run = train_world.make_run(
        folder,
        policy,
        objective=objective,
        fresh={"per_question": 2, "max_tokens": 12, "questions_per_unit": 4},
        **{"train": {"steps": 2, "save_every_steps": 9, "learning_rate": 1e-9}} | sections,
    )
    kept = [row for row in read_shard(run.round(0).kept_file, Kept) if row.images][:8]
    questions = [Question(id=r.question_id, question=r.question, answer="1", images=r.images) for r in kept]
    write_shard(run.questions_file, questions, Question)
    return config, run


@pytest.fixture(scope="module")
def answers(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    """Sampled with transformers' own implementation of the model."""
    config, folder = world(tmp_path_factory.mktemp("sampled") / "run", policy, MIXED)
    engine = TransformersEngine(EngineConfig(kind="transformers", dtype="float32"), policy, ImageLimits(max_tiles=1))
    assert generate_fresh(Round(config, folder, 0), engine, NoProgress()) == 2
    assert generate_fresh(Round(config, folder, 0), engine, NoProgress()) == 0  # nothing is done twice
    found = list(read_folder(folder.round(0).fresh, Answer))
    assert len(found) == len({row.seed for row in found}) == 16
    assert {(row.temperature, row.top_p) for row in found} == {(1.0, 1.0)}
    return found


def trained(config: Config, folder: RunFolder, answers: list[Answer], ranks: int = 1) -> dict[str, Any]:
    """The first step's line in the metrics."""
    write_shard(folder.round(0).fresh / "0.parquet", answers, Answer)
    assert run(train_world.train, ranks, config, folder) == [True] * ranks
    return next(line for line in read_metrics(folder.round(0).train / "metrics.jsonl") if "loss" in line)


def shifted(answers: list[Answer], nats: float) -> list[Answer]:
    """As if the sampling policy had given each token a probability exp(-nats) times as large."""
    return [replace(row, token_logprobs=tuple(value - nats for value in row.token_logprobs)) for row in answers]


@pytest.mark.parametrize(
    ("layout", "ranks"), [({}, 1), ({"tensor": 2, "pipeline": 2, "sequence_parallel": True}, 4)], ids=["1", "tp2 pp2"]
)
def test_before_the_first_step_every_ratio_is_one(tmp_path, policy, answers, layout, ranks):
    config, folder = world(tmp_path / "run", policy, MIXED, parallel=layout)
    line = trained(config, folder, answers, ranks)
    assert line["ratio_p01"] == pytest.approx(1.0, abs=0.02) and line["ratio_p99"] == pytest.approx(1.0, abs=0.02)
    assert line["effective_sample_share_tokens"] == pytest.approx(1.0, abs=1e-4)


def test_what_was_recorded_is_what_ratios_divide_by(tmp_path, policy, answers):
    config, folder = world(tmp_path / "run", policy, MIXED)
    line = trained(config, folder, shifted(answers, 0.5))
    assert line["ratio_p99"] == pytest.approx(1.6487, rel=0.06)  # e^0.5, of the policy's own
    assert line["ratio_p01"] == pytest.approx(1.0, abs=0.02)  # the stored ones have no recorded policy


def test_correction_weighs_the_gap_of_the_policys_own(tmp_path, policy, answers):
    config, folder = world(tmp_path / "run", policy, MIXED | {"correction": "tis", "behaviour": "reference"})
    line = trained(config, folder, shifted(answers, 0.5))
    assert line["rollout_gap"] == pytest.approx(0.5, abs=1e-3)
    assert line["correction"] == pytest.approx(1.6487, rel=1e-3)


def test_missing_answers_are_named(tmp_path, policy, answers):
    config, folder = world(tmp_path / "run", policy, MIXED)
    some = [row for row in answers if row.question_id != answers[0].question_id]
    with pytest.raises(SophiaError, match=r"1 of 8 questions have no answers .*fresh_share.*run `sophia generate`"):
        trained(config, folder, some)
    assert not folder.round(0).checkpoints.exists()

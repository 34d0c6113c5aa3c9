"""Episodes of several turns train: each turn behind its own prompt, with rewards, weights and targets of one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.transformers_engine import _Row
from sophia_mcore.store.json_files import read_json
from sophia_mcore.track.metrics import read_metrics
from tests.support import stage_world, train_world

MINE = """
from sophia_mcore.environments import Target, Weight

def early(episode, question):  # the first letter of a turn follows from its first token, which can be learned
    return tuple(float(turn.text.strip()[:1] < "n") for turn in episode.policy_turns)

def second_only(group, *, kl=0.1):
    mean = sum(one.rewards[1] for one in group) / len(group)
    return [[Weight(0.0, kl), Weight(one.rewards[1] - mean, 0.0)] for one in group]

def best(episode, question):
    if episode.scores["early"] == 2.0:
        for turn in episode.policy_turns:
            pieces = ((turn.text[:3], False), (turn.text[3:], True))
            yield Target(messages=turn.messages, images=turn.images, pieces=pieces)

def broken(episode, question):
    raise ValueError("always")
def not_a_number(episode, question): return float("nan")
def text(episode, question): return "good"
def too_many(episode, question): return (1.0, 2.0)
def dies(episode, question):
    import os
    os._exit(3)
def hangs(episode, question):
    while True: pass
def sometimes(episode, question):
    return float("nan") if episode.index == 1 else 2.0 + (episode.index == 0)
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_world.make_policy(tmp_path_factory.mktemp("policy") / "policy")


def stage(
    folder: Path, policy: Path, reward: str = "early", functions: Mapping[str, Any] | None = None, **rl: Any
) -> tuple[Any, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(MINE)
    settings: Mapping[str, Any] = {"environment": "again", "samples_per_update": 16, "batches": 2, **rl}
    rewards = ({"function": f"{folder}/mine.py:{reward}"},)
    return stage_world.make_stage(
        folder / "run", policy, dict(settings), rewards=rewards, batch={"sequence_length_tokens": 384},
        functions=dict(functions or {}),
    )  # fmt: skip


def lines(run: Any, phase: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run.rl.train / "metrics.jsonl") if line["phase"] == phase]


@pytest.fixture
def full_logprobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine notes log-probs over the whole vocabulary, as the trainer has them.

    Image tokens cannot be sampled, so its own are over all other tokens. A random model gives image tokens up to 2%,
    and the gap is just that: 0.02 nats at the 99th percentile. Without it nothing may differ but rounding.
    """
    plain = _Row.step

    def step(row: _Row, logits_V: torch.Tensor) -> int:
        full_V, noted = torch.log_softmax(logits_V, dim=-1), len(row.logprobs)
        token = plain(row, logits_V)
        if len(row.logprobs) > noted:
            row.logprobs[-1] = float(full_V[token])
        return token

    monkeypatch.setattr(_Row, "step", step)  # the engine's process is forked from this one


@pytest.mark.usefixtures("full_logprobs")
def test_two_turns_learn(tmp_path: Path, policy: Path) -> None:
    config, run = stage(tmp_path, policy, batches=6, group=8, samples_per_update=32, weigh="turn")
    with stage_world.engine(config, run, episodes=True):
        assert stage_world.train(config, run) == [True]
    batches = lines(run, "batch")
    assert {line["turns_mean"] for line in batches} == {2.0} and batches[0]["episodes"] == 32
    assert batches[-1]["reward_early"] > batches[0]["reward_early"] + 0.3
    assert max(line["rollout_gap_p99"] for line in batches) < 1e-4
    assert {"accuracy_turn_1", "accuracy_turn_2", "reward_mean"} <= batches[0].keys()


def test_weights_and_targets_of_ones_own(tmp_path: Path, policy: Path) -> None:
    """Kept beside the rollouts: a stage that trains again from the stored ones needs no function and no engine."""
    own = {"weigh": f"{tmp_path}/mine.py:second_only", "relabel": ({"function": f"{tmp_path}/mine.py:best"},)}
    config, run = stage(tmp_path, policy, **own)
    with stage_world.engine(config, run, episodes=True):
        assert stage_world.train(config, run) == [True]
    learned = read_json(run.rl.batch(0) / "learned.json")
    assert learned is not None and learned["targets"] and learned["failed"] == 0
    first = {name: value for name, value in learned["weights"].items() if ".t1" not in name}
    assert set(map(tuple, first.values())) == {(0.0, 0.1)}
    updates = lines(run, "update")
    assert updates[0]["kl"] < 1e-6 < updates[-1]["kl"]
    assert sum(line["samples_auxiliary"] for line in updates) == sum(
        len(json.loads((run.rl.batch(b) / "learned.json").read_text())["targets"]) for b in range(2)
    )
    assert all(line["nll_auxiliary"] > 0 for line in updates if line["samples_auxiliary"])
    before = stage_world.left_behind(run)["versions"]
    import shutil

    for folder in (run.rl.train, run.rl.versions, run.rl.model, run.rl.path / "old", run.code):
        shutil.rmtree(folder)
    assert stage_world.train(config, run, replay=True) == [True]
    assert stage_world.left_behind(run)["versions"] == before


def test_further_questions_are_asked_before_a_batch_is_relabelled(tmp_path: Path, policy: Path) -> None:
    own = {"fill": "resample", "max_resamples": 1, "relabel": ({"function": f"{tmp_path}/mine.py:best"},)}
    config, run = stage(tmp_path, policy, batches=1, **own)
    with stage_world.engine(config, run, episodes=True):
        assert stage_world.train(config, run) == [True]
    learned = read_json(run.rl.batch(0) / "learned.json")
    assert learned is not None and learned["targets"]
    assert sum(line["samples_auxiliary"] for line in lines(run, "update")) <= len(learned["targets"])


@pytest.mark.parametrize(
    ("reward", "why"),
    [
        ("broken", "ValueError: always"),
        ("not_a_number", "what it returned is nan"),
        ("text", "what it returned must be a number, not 'good'"),
        ("too_many", "returned 2 numbers for 1 turns of the policy"),
        ("dies", "its process ended with exit code 3"),
        ("hangs", r"took more than 0.1 CPU-seconds \(functions.timeout_seconds\)"),
    ],
)
def test_functions_that_fail_stop_the_stage_by_name(tmp_path: Path, policy: Path, reward: str, why: str) -> None:
    limits = {"timeout_seconds": 0.1 if reward == "hangs" else 0.5}  # of each of the 16 episodes
    config, run = stage(tmp_path, policy, reward, functions=limits, environment="single", batches=1)
    with (
        stage_world.engine(config, run, episodes=True),
        pytest.raises(SophiaError, match=rf"batch 0: 16 of 16 episodes are broken.*mine.py:{reward}: {why}"),
    ):
        stage_world.train(config, run)


def test_a_value_that_is_none_is_left_out_and_is_never_zero(tmp_path: Path, policy: Path) -> None:
    """NaN from one function for one answer of each group: no mean and no advantage has anything of it."""
    allowed = {"max_broken_share": 0.5, "timeout_seconds": 20.0}
    config, run = stage(tmp_path, policy, "sometimes", functions=allowed, environment="single", batches=1)
    with stage_world.engine(config, run, episodes=True):
        assert stage_world.train(config, run) == [True]
    (batch,) = lines(run, "batch")
    assert batch["broken_episodes_share"] == batch["not_judged_share"] == 0.25
    assert 2.0 <= batch["reward_mean"] <= 3.0 and 2.0 <= batch["reward_sometimes"] <= 3.0  # with a 0 it would be less

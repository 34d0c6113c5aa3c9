"""The on-policy stage on gloo ranks beside an engine: it learns, and killed anywhere it ends with the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.track.metrics import read_metrics
from tests.support import stage_world, train_world
from tests.support.harness import RankError


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_world.make_policy(tmp_path_factory.mktemp("policy") / "policy")


def whole(folder: Path, policy: Path, rl: dict[str, Any], ranks: int = 1, **sections: Any) -> Any:
    """An undisturbed stage; (config, run)."""
    config, run = stage_world.make_stage(folder, policy, rl, **sections)
    with stage_world.engine(config, run):
        assert stage_world.train(config, run, ranks) == [True] * ranks
    return config, run


def lines(run: Any, phase: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run.rl.train / "metrics.jsonl") if line["phase"] == phase]


def test_the_stage_learns(tmp_path: Path, policy: Path) -> None:
    _, run = whole(tmp_path / "run", policy, {"batches": 8, "group": 8, "samples_per_update": 32})
    batches, updates = lines(run, "batch"), lines(run, "update")
    assert len(batches) == len(updates) == 8
    assert batches[-1]["accuracy"] > batches[0]["accuracy"] + 0.2
    assert max(line["rollout_gap_p99"] for line in batches if "rollout_gap_p99" in line) < 1e-4


SSR = {"fill": "ssr", "ssr": {"episode_questions": 8}, "objective": {"correction": "tis"}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> dict[str, Any]:
    _, run = whole(tmp_path_factory.mktemp("undisturbed") / "run", policy, SSR)
    return stage_world.left_behind(run)


KILLS = (
    "rl_publish.announce:1", "rl_publish.announce:3", "rl_publish.announce:3+", "rl_publish.publish:4",
    "rl_open.open_batch:2", "rl_loop.take:2", "rl_loop.measure_batch:2+", "rl_loop.train_step:3",
    "rl_loop.train_step:6+", "rl_log.StageLog.batch:3+", "rl_publish.finish_model:1", "rl_loop.train_step:5+",
)  # fmt: skip


@pytest.mark.parametrize("kill", KILLS)
def test_killed_anywhere_it_ends_with_the_same_bytes(
    tmp_path: Path, policy: Path, undisturbed: dict[str, Any], kill: str
) -> None:
    config, run = stage_world.make_stage(tmp_path / "run", policy, SSR)
    with stage_world.engine(config, run):
        with pytest.raises(RankError, match="died without an answer"):
            stage_world.train(config, run, kill=kill)
        assert not run.rl.summary_file.exists()
        assert stage_world.train(config, run) == [True]
    found = stage_world.left_behind(run)
    for name, wanted in undisturbed.items():
        assert found[name] == wanted, name

"""The on-policy stage on gloo ranks with an engine beside it: it learns, and killed anywhere it ends with the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.track.metrics import read_metrics
from tests.support import stage_world, train_world


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
    print([line["accuracy"] for line in batches])
    assert batches[-1]["accuracy"] > batches[0]["accuracy"] + 0.2
    assert max(line["rollout_gap_p99"] for line in batches if "rollout_gap_p99" in line) < 1e-4

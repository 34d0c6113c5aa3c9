"""Trained for real: other settings, or other kept trajectories, never end with the old weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.launch.local import run_phases
from sophia_mcore.launch.phases import PHASES, phase_named
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.records import Kept
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_shard, write_shard
from tests.support import train_world
from tests.support.provenance_world import with_values

STEPS = ("train", "export")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunFolder]:
    policy = train_world.make_policy(tmp_path_factory.mktemp("policy") / "model")
    config, run = train_world.make_run(tmp_path_factory.mktemp("world") / "run", policy)
    run.round(0).kept_summary_file.write_text("{}")
    run_phases(config, STEPS, [0])
    return config, run


def weights(run: RunFolder) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(run.round(0).model.glob("*.safetensors")))


@pytest.mark.slow
def test_old_weights_never_stay(trained: tuple[Config, RunFolder]) -> None:
    config, run = trained
    first = weights(run)
    run_phases(config, STEPS, [0])
    assert weights(run) == first and not run.aside.exists()  # nothing has changed: nothing is done
    shorter = with_values(config, {"train.steps": 2})
    with pytest.raises(UsageError, match=r"train\.steps 6 -> 2\), and train depends on them"):
        run_phases(shorter, STEPS, [0])
    run_phases(shorter, STEPS, [0], new_settings=True)
    second = weights(run)
    assert second != first and json.loads(run.round(0).train_summary_file.read_text())["steps"] == 2
    (old,) = run.aside.glob("*/round-0/model")
    assert b"".join(path.read_bytes() for path in sorted(old.glob("*.safetensors"))) == first

    kept = read_shard(run.round(0).kept_file, Kept)
    run.round(0).kept_file.unlink()
    write_shard(run.round(0).kept_file, [replace(row, response="Something else.") for row in kept], Kept)
    assert "made from other kept" in Provenance(shorter, run, PHASES).why_stale(phase_named("train"), 0)
    run_phases(shorter, STEPS, [0])
    third = weights(run)
    assert third != second

    longer = with_values(shorter, {"train.steps": 4})
    run_phases(longer, STEPS, [0], again="train")
    assert weights(run) != third and json.loads(run.round(0).train_summary_file.read_text())["steps"] == 4
    assert Provenance(longer, run, PHASES).stale_lines() == []

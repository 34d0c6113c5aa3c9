"""The last version of a stage is damaged: while engines validate it, and before it becomes the stage's model."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sophia_mcore.records import Question
from sophia_mcore.rl.versions import (
    DamagedVersionError,
    Version,
    damage_file,
    note_damage,
    read_version,
    verify_version,
)
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import write_shard
from sophia_mcore.train.on_policy.publish import finish_model, waits_for_validation
from tests.support import stage_world, train_world
from tests.support.versions import publish


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_world.make_policy(tmp_path_factory.mktemp("policy") / "policy")


def damage(pointers: Path, version: Version) -> None:
    with open(next(version.path(pointers).glob("*.safetensors")), "r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def wait_for(found: Callable[[], Any], seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while not found() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(found())


def test_a_version_that_is_damaged_before_its_validation(tmp_path: Path, policy: Path) -> None:
    """The trainer writes it again while it waits for the validation, here until there is nothing to validate."""
    config, run = stage_world.make_stage(tmp_path / "run", policy, {"batches": 2})
    validation, pointers = run.rl.validation_questions_file, run.rl.versions
    write_shard(validation, stage_world.read_questions(run)[:2], Question)
    mended = []

    def look() -> None:
        wait_for(lambda: read_version(pointers, 2))
        version = read_version(pointers, 2)
        assert version is not None
        damage(pointers, version)
        note_damage(pointers, version, "its bytes are not those that were written")
        mended.append(wait_for(lambda: not damage_file(pointers, 2).exists(), 20.0))
        validation.unlink()

    looker = threading.Thread(target=look)
    looker.start()
    with stage_world.engine(config, run):
        assert stage_world.train(config, run) == [True]
    looker.join()
    version = read_version(pointers, 2)
    assert mended == [True] and version is not None
    verify_version(version.path(pointers), version.digest)


def test_a_damaged_version_does_not_become_the_model(tmp_path: Path, policy: Path) -> None:
    rl = RunFolder(tmp_path).rl
    rl.versions.mkdir(parents=True)
    version = publish(policy, rl.versions, 0)
    job: Any = SimpleNamespace(folder=rl)
    finish_model(job, 0)
    before = {path.name: path.read_bytes() for path in rl.model.iterdir()}
    assert "config.json" in before
    damage(rl.versions, version)
    with pytest.raises(DamagedVersionError, match="its bytes are not those that were written"):
        finish_model(job, 0)
    assert damage_file(rl.versions, 0).exists()  # the stage, run again, knows that it has to write it


def test_an_earlier_version_that_is_damaged_is_not_awaited(tmp_path: Path, policy: Path) -> None:
    """Its validation would never come: only the newest version's weights are still with the trainer."""
    config, run = stage_world.make_stage(tmp_path / "run", policy, {"batches": 2, "validate_every_batches": 1})
    write_shard(run.rl.validation_questions_file, stage_world.read_questions(run)[:2], Question)
    run.rl.versions.mkdir(parents=True, exist_ok=True)
    versions = [publish(policy, run.rl.versions, number) for number in range(3)]
    job: Any = SimpleNamespace(config=config, run=run, rl=config.on_policy, folder=run.rl)
    assert waits_for_validation(job, 2) == [0, 1, 2]
    for version in versions[1:]:
        note_damage(run.rl.versions, version, "its bytes are not those that were written")
    assert waits_for_validation(job, 2) == [0, 2]

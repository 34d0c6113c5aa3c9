"""A power cut takes what no process has brought to the disk. The stage, run again, ends with the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config.schema import Config
from sophia_mcore.rl.devices import node_folder
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.train.checkpoint import Checkpoints
from tests.dist.test_rl_stage import SSR, whole
from tests.support import harness, stage_world, train_world
from tests.support.harness import RankError


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_world.make_policy(tmp_path_factory.mktemp("policy") / "policy")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> dict[str, Any]:
    _, run = whole(tmp_path_factory.mktemp("undisturbed") / "run", policy, SSR)
    return stage_world.left_behind(run)


def identity(status: os.stat_result) -> str:
    """Of a file's bytes: an inode is used again, at another time."""
    return f"{status.st_ino}.{status.st_mtime_ns}"


def record_syncs(record: Path) -> None:
    """From now on this process, a forked rank, notes which files it has brought to the disk."""
    plain = os.fsync
    note = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def fsync(descriptor: Any) -> None:
        plain(descriptor)
        os.write(note, f"{identity(os.stat(descriptor))}\n".encode())

    os.fsync = fsync


def not_synced(files: Iterable[Path], record: Path) -> list[Path]:
    synced = set(record.read_text().split())
    return [path for path in sorted(files) if identity(path.stat()) not in synced]


def train_recorded(config: Config, run: RunFolder, kill: str, record: Path) -> bool:
    record_syncs(record)
    return stage_world.train_here(config, run, kill)


@pytest.mark.parametrize("kill", ["publish.announce:1+", "publish.announce:4+", "publish.announce:5+"])
def test_what_a_power_cut_takes_is_written_again(
    tmp_path: Path, policy: Path, undisturbed: dict[str, Any], kill: str
) -> None:
    config, run = stage_world.make_stage(tmp_path / "run", policy, SSR)
    record = tmp_path / "synced"
    with stage_world.engine(config, run), pytest.raises(RankError, match="died without an answer"):
        harness.run(train_recorded, 1, config, run, kill, record, timeout_seconds=240.0)
    lost = not_synced(run.rl.versions.glob("*/*.safetensors"), record)
    assert lost  # of the newest version at least
    for path in lost:
        path.write_bytes(bytes(path.stat().st_size))
    with stage_world.engine(config, run):
        assert stage_world.train(config, run) == [True]
    found = stage_world.left_behind(run)
    for name, wanted in undisturbed.items():
        assert found[name] == wanted, name


def train_and_look(config: Config, run: RunFolder, record: Path) -> list[list[Path]]:
    """What is not on the disk when each checkpoint becomes visible, and in the end."""
    record_syncs(record)
    parent = node_folder(run) / "versions" if config.on_policy.versions == "memory" else run.rl.versions
    commit, found = Checkpoints._commit, []

    def look(checkpoints: Checkpoints, step: int) -> None:
        files = list(parent.glob("*-*/*"))
        assert files
        found.append(not_synced([*files, run.rl.metrics_file], record))
        commit(checkpoints, step)

    Checkpoints._commit = look  # type: ignore[method-assign]
    assert stage_world.train_here(config, run, "")
    return [*found, not_synced(run.rl.model.iterdir(), record)]


@pytest.mark.parametrize("place", ["run", "memory"])
def test_versions_are_on_the_disk_before_a_checkpoint_and_the_model_in_the_end(
    tmp_path: Path, policy: Path, place: str
) -> None:
    """Behind a checkpoint no resumed stage writes them again."""
    if place == "memory" and not os.access("/dev/shm", os.W_OK):
        pytest.skip("needs a /dev/shm that can be written (a tmpfs)")
    config, run = stage_world.make_stage(tmp_path / "run", policy, {**SSR, "versions": place})
    with stage_world.engine(config, run):
        (found,) = harness.run(train_and_look, 1, config, run, tmp_path / "synced", timeout_seconds=240.0)
    assert len(found) == 3  # checkpoints of batches 2 and 4, and the end
    assert not any(found)

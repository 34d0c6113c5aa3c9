"""Engines and whole stages with copies of versions: several nodes on this machine, each with a folder of its own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sophia_mcore.generate.rollout_loop import Rollouts
from sophia_mcore.rl import copies as rl_copies
from sophia_mcore.rl.copies import Copier, node_copies
from sophia_mcore.rl.devices import node_folder
from sophia_mcore.rl.versions import Version, damage_file, pointer_file, verify_version
from tests.support.living_engine import FakeLivingEngine
from tests.support.rl_nodes import NODES, flip, in_this_process, make_models, units_of, wait_for
from tests.support.rl_world import make_rl_run, rollouts_of
from tests.support.versions import publish

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_models(tmp_path_factory.mktemp("models"))


class Loop(Rollouts):
    """An engine's loop of which only the loading is used."""

    def __init__(self, folder: Path, models: list[Path]) -> None:
        config, run = make_rl_run(folder / "run", models[0], **NODES)
        run.rl.versions.mkdir(parents=True)
        copies = node_copies(config, run, folder / "node")
        assert copies is not None
        self.opened: list[Path] = []

        def open_engine(version: Version) -> FakeLivingEngine:
            self.opened.append(version.path(run.rl.versions))
            return FakeLivingEngine(self.opened[-1], version.digest)

        nothing: Any = SimpleNamespace()
        super().__init__(
            config, run, nothing, nothing, nothing, open_engine, name="test", lease_seconds=1.0, copies=copies
        )
        self.copies = copies


def test_an_engine_goes_on_until_the_copy_is_there(tmp_path: Path, models: list[Path]) -> None:
    loop = Loop(tmp_path, models)
    pointers = loop.run_folder.rl.versions
    first = publish(models[0], pointers, 0)
    loop.copies.copy(first, threading.Event())
    assert loop.newest() == first and loop._ready(first)
    assert loop.opened == [loop.copies.path(first)]
    with open(loop.copies.folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = publish(models[1], pointers, 1)
        assert loop.newest() == first == loop.loaded
        loop.copies.copy(second, threading.Event())
        assert loop.newest() == second
        third = publish(models[2], pointers, 2)
        assert loop.newest() == first
    assert loop.newest() == third  # nobody promises it any more
    assert loop._ready(third) and loop.loaded == third and not loop._copied


def test_an_engine_loads_a_damaged_copy_from_the_run_folder(
    tmp_path: Path, models: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    loop = Loop(tmp_path, models)
    pointers = loop.run_folder.rl.versions
    with Copier(loop.copies):
        version = publish(models[0], pointers, 0)
        wait_for(lambda: loop.copies.path(version).is_dir(), "the copy")
        flip(loop.copies.path(version) / "model.safetensors")
        assert loop._ready(version) and not loop._copied
        assert loop.loaded == version and loop.opened[-1] == version.path(pointers)
        assert not damage_file(pointers, 0).exists()  # the trainer has nothing to mend
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and "it is loaded from the run folder" in said
        wait_for(lambda: loop.copies.path(version).is_dir(), "a new copy")
        verify_version(loop.copies.path(version), version.digest)
        later = publish(models[1], pointers, 1)
        wait_for(lambda: loop.copies.path(later).is_dir(), "the next copy")
        (loop.copies.path(later) / "config.json").unlink()
        assert loop._ready(later) and loop.loaded == later and not loop._copied


def test_engines_sample_on_while_a_version_is_copied(
    tmp_path: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units go on with the version before, as far as the lag allows; no answer is older than that."""
    plain = rl_copies._copy_files

    def slow(*given: Any) -> None:
        time.sleep(0.5)
        plain(*given)

    monkeypatch.setattr(rl_copies, "_copy_files", slow)
    settings = {"lag": 2, "batches": 6, "questions_per_unit": 1, "objective": {"correction": "tis"}}
    run = in_this_process(tmp_path, models, NODES | settings, step_seconds=0.1)
    rollouts = rollouts_of(run)
    assert len({one.id for one in rollouts}) == 6 * 4 * 3
    assert {one.batch - one.version for one in rollouts} <= {0, 1, 2}
    lines = units_of(run)
    assert all(line["copied"] for line in lines)

    def is_late(line: dict[str, Any]) -> bool:
        """Whether the unit began when a newer version was out already."""
        newer = pointer_file(run.rl.versions, line["version"] + 1)
        return newer.exists() and line["time"] - line["seconds"] > newer.stat().st_mtime + 0.1

    assert any(is_late(line) for line in lines)


def test_engines_that_share_their_devices_with_the_trainer(tmp_path: Path, models: list[Path]) -> None:
    """Stages of the pipeline on two nodes: an engine that has slept waits for the whole copy of its own node."""
    settings = {"versions": "memory", "parallel": {"pipeline": 2, "processes": 2, "processes_per_node": 1}}
    run = in_this_process(tmp_path, models, settings, sleeps=True)
    rollouts = rollouts_of(run)
    assert len({one.id for one in rollouts}) == 3 * 4 * 3 and all(one.batch == one.version for one in rollouts)
    lines = units_of(run)
    assert len(lines) == 6 and all(line["copied"] for line in lines)
    assert not (tmp_path / "node").exists()
    shutil.rmtree(node_folder(run))  # the lock of the devices


class Stage:
    """A stage on three nodes: one trains, two sample. Each node has a supervisor and a folder of its own."""

    def __init__(self, folder: Path, models: list[Path], **settings: Any) -> None:
        self.config, self.run = make_rl_run(folder / "run", models[0], **NODES | settings)
        self.models, self.folder = models, folder

    def start(self, node: int, *, trains: bool = False) -> subprocess.Popen[str]:
        copies = self.folder / f"node{node}"
        models = [word for model in self.models for word in ("--model", str(model))]
        trainer = ["-m", "tests.support.rl_world", *models] if trains else []
        engine = [] if trains else ["-m", "tests.support.rl_engine", "--step-seconds", "0.1", "--copies", str(copies)]
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.support.rl_supervisor", str(self.run.path)),
                *(json.dumps(trainer), json.dumps(engine), sys.executable, str(copies)),
            ],
            stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def shards(self) -> dict[str, bytes]:
        found = sorted(path for path in self.run.rl.rollouts.glob("*/*.parquet") if path.name[0] != ".")
        return {str(path.relative_to(self.run.path)): path.read_bytes() for path in found}


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, said = process.communicate(timeout=180)
        assert process.returncode == 0 and "warning" not in said, said


@pytest.fixture(scope="module")
def from_the_run_folder(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    stage = Stage(tmp_path_factory.mktemp("plain"), models, versions="run")
    finish([stage.start(0, trains=True), stage.start(1)])
    assert not list(stage.folder.glob("node*")) and all("copied" not in line for line in units_of(stage.run))
    return stage.shards()


@pytest.mark.slow
def test_a_stage_on_several_nodes(models: list[Path], from_the_run_folder: dict[str, bytes], tmp_path: Path) -> None:
    """Every node loads its own copies; versions, answers and stamps are those of a stage without copies."""
    stage = Stage(tmp_path, models)
    finish([stage.start(0, trains=True), stage.start(1), stage.start(2)])
    assert stage.shards() == from_the_run_folder
    lines = units_of(stage.run)
    assert len(lines) == 6 and all(line["copied"] for line in lines)
    assert not list(tmp_path.glob("node*"))
    assert not node_folder(stage.run).exists()
    assert all(path.parent == stage.run.rl.versions for path in stage.run.rl.versions.glob("*/"))
    assert len({one.model_digest for one in rollouts_of(stage.run)}) == 3


def test_a_killed_node_comes_back(models: list[Path], from_the_run_folder: dict[str, bytes], tmp_path: Path) -> None:
    stage = Stage(tmp_path, models)
    trainer, node = stage.start(0, trains=True), stage.start(1)
    try:
        wait_for(lambda: stage.shards(), "an answer")
        node.send_signal(signal.SIGKILL)
        node.communicate()
        assert list((tmp_path / "node1").glob("*/version.json"))  # nobody was there to remove it
    finally:
        again = stage.start(1)
        finish([trainer, again])
    assert stage.shards() == from_the_run_folder and not (tmp_path / "node1").exists()

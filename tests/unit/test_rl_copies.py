"""Copies of versions in the memory of each node: several nodes on this machine, each with a folder of its own."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sophia_mcore.errors import UsageError
from sophia_mcore.generate.phase import read_questions
from sophia_mcore.generate.rollout_loop import Rollouts
from sophia_mcore.generate.rollout_unit import Examiner
from sophia_mcore.generate.watchdog import Watchdog
from sophia_mcore.launch.slurm.engines import engines_command
from sophia_mcore.launch.slurm.jobs import Site
from sophia_mcore.rl import copies as rl_copies
from sophia_mcore.rl.copies import Copier, NodeCopies, node_copies
from sophia_mcore.rl.devices import node_folder
from sophia_mcore.rl.versions import Version, damage_file, newest_version, pointer_file, verify_version
from sophia_mcore.score.grading import open_grader
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from tests.support import tiny_models
from tests.support.living_engine import FakeLivingEngine
from tests.support.rl_world import StubTrainer, make_rl_run, rollouts_of
from tests.support.versions import publish

ROOT = Path(__file__).resolve().parents[2]
NODES = {"placement": "separate", "versions": "memory", "rollout_nodes": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three sets of weights; a second weight file is the same in all, as that of a frozen tower."""
    folder = tmp_path_factory.mktemp("models")
    made = [tiny_models.save_internvl(folder / str(seed), seed=seed) for seed in (1, 2, 3)]
    for model in made:
        (model / "frozen.bin").write_bytes(bytes(range(256)) * 4096)
    return made


class World:
    """A run folder's versions, and a node that copies them."""

    def __init__(self, folder: Path, models: list[Path]) -> None:
        self.pointers = folder / "versions"
        self.pointers.mkdir()
        self.models = models
        self.copies = NodeCopies(folder / "node", self.pointers)

    def publish(self, number: int) -> Version:
        return publish(self.models[number % 3], self.pointers, number)

    def copy(self, version: Version) -> Path:
        self.copies.copy(version, threading.Event())
        return self.copies.path(version)

    def there(self) -> list[str]:
        return sorted(path.name for path in self.copies.folder.iterdir() if path.is_dir())


@pytest.fixture
def world(tmp_path: Path, models: list[Path]) -> World:
    return World(tmp_path, models)


def wait_for(found: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, what
        time.sleep(0.01)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_what_has_not_changed_is_copied_once(world: World) -> None:
    before = world.publish(0)
    first = world.copy(before)
    with world.copies.reading(before) as held:
        assert held == first
        second = world.copy(world.publish(1))
        assert world.there() == [first.name, second.name]  # an engine loads the first
        verify_version(first, before.digest)
    newest = newest_version(world.pointers)
    assert newest is not None
    verify_version(second, newest.digest)
    assert (second / "frozen.bin").samefile(first / "frozen.bin")
    assert not (second / "model.safetensors").samefile(first / "model.safetensors")
    assert not (second / "frozen.bin").samefile(newest.path(world.pointers) / "frozen.bin")
    third = world.copy(world.publish(2))
    assert world.there() == [third.name]


def test_a_damaged_frozen_file_is_not_handed_on(world: World) -> None:
    flip(world.copy(world.publish(0)) / "frozen.bin")
    version = world.publish(1)
    verify_version(world.copy(version), version.digest)


SLOW_COPIER = """
import os, sys, threading, time
from pathlib import Path
from sophia_mcore.rl import copies
from sophia_mcore.rl.copies import Copier, NodeCopies
plain, copies._CHUNK_BYTES = copies.new_digest, 1 << 16
class Slow:
    def __init__(self, name): self.digest = plain(name)
    def update(self, data): time.sleep(0.02); self.digest.update(data)
    def hexdigest(self): return self.digest.hexdigest()
copies.new_digest = Slow
with Copier(NodeCopies(Path(sys.argv[1]), Path(sys.argv[2]))):
    time.sleep(600)
"""


@pytest.fixture
def slow_copier(world: World) -> Iterator[subprocess.Popen[bytes]]:
    """A copier process that needs some seconds for a version."""
    command = [sys.executable, "-c", SLOW_COPIER, str(world.copies.folder), str(world.pointers)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    yield process
    process.kill()
    process.wait()


def test_a_copier_that_is_killed_in_the_middle(world: World, slow_copier: subprocess.Popen[bytes]) -> None:
    """Engines wait for what it has promised, and no longer; the next copier makes it whole."""
    version = world.publish(0)
    partial = world.copies.folder / f".tmp-{world.copies.path(version).name}" / "frozen.bin"
    wait_for(lambda: partial.exists() and partial.stat().st_size, "the copy begins")
    assert world.copies.awaited(version)
    found: list[Path | None] = []

    def read() -> None:
        with world.copies.reading(version) as copy:
            found.append(copy)

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.2)
    assert not found
    slow_copier.kill()
    reader.join(30)
    assert found == [None] and partial.exists()
    with Copier(world.copies):
        wait_for(lambda: world.copies.path(version).is_dir(), "the copy")
        verify_version(world.copies.path(version), version.digest)
        assert world.there() == [world.copies.path(version).name]
    assert not world.copies.folder.exists()


def test_what_a_killed_copier_left_is_used_again(world: World, slow_copier: subprocess.Popen[bytes]) -> None:
    version = world.publish(0)
    whole = world.copies.path(version)
    wait_for(whole.is_dir, "the copy")
    slow_copier.kill()
    slow_copier.wait()
    number = (whole / "frozen.bin").stat().st_ino
    with Copier(world.copies):
        later = world.publish(1)
        wait_for(lambda: world.copies.path(later).is_dir(), "the next copy")
        assert (world.copies.path(later) / "frozen.bin").stat().st_ino == number
    assert not world.copies.folder.exists()


def test_a_node_has_one_copier(world: World) -> None:
    """The second takes over when the first has ended, as when a job comes back to a node that it is still leaving."""
    with Copier(world.copies):
        version = world.publish(0)
        wait_for(lambda: world.copies.path(version).is_dir(), "the copy")
        with Copier(world.copies):
            time.sleep(0.2)
        assert world.copies.path(version).is_dir()  # it was not the second one's to remove
    second = Copier(world.copies)
    with Copier(world.copies), second:
        pass
    with second_after(world):
        wait_for(lambda: world.copies.path(version).is_dir(), "the copy of the second")


def second_after(world: World) -> Copier:
    """A copier that begins while another still holds the node, which then ends."""
    first = Copier(world.copies)
    first.__enter__()
    threading.Timer(0.3, first.__exit__, (None, None, None)).start()
    return Copier(world.copies)


def test_a_damaged_source_is_not_copied(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    version = world.publish(0)
    flip(version.path(world.pointers) / "model.safetensors")
    with Copier(world.copies):
        wait_for(lambda: not world.copies.awaited(version), "an end of the promise")
        with world.copies.reading(version) as copy:
            assert copy is None
        assert world.there() == []
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "model.safetensors: other bytes than were written" in said


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs that has room for one version with its frozen file, and not for two."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("NOT TESTED on a real tmpfs that is full: mounting one needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_memory_is_told_once(world: World, small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Engines load from the run folder then, and from memory again when there is room."""
    copies = NodeCopies(small / "node", world.pointers)
    rubbish = small / "rubbish"
    rubbish.write_bytes(bytes(2_500_000))
    with Copier(copies):
        for number in (0, 1):
            version = world.publish(number)
            wait_for(lambda version=version: not copies.awaited(version), "an end of the promise")
            with copies.reading(version) as copy:
                assert copy is None
        rubbish.unlink()
        version = world.publish(2)
        wait_for(lambda: copies.path(version).is_dir(), "the copy")
        verify_version(copies.path(version), version.digest)
        assert [path.name for path in copies.folder.iterdir() if path.is_dir()] == [copies.path(version).name]
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "GiB needed): engines of this node load them from the run folder" in said


def test_a_memory_that_fills_up_under_way(world: World, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others write at the same time no look beforehand can know: no part of a copy remains."""
    monkeypatch.setattr(rl_copies, "_require_room", lambda folder, needed: None)
    copies = NodeCopies(small / "node", world.pointers)
    (small / "rubbish").write_bytes(bytes(2_500_000))
    with pytest.raises(OSError, match="No space left"):
        copies.copy(world.publish(0), threading.Event())
    assert list(copies.folder.iterdir()) == []


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
        later = publish(models[1], pointers, 1)
        wait_for(lambda: loop.copies.path(later).is_dir(), "the next copy")
        (loop.copies.path(later) / "config.json").unlink()
        assert loop._ready(later) and loop.loaded == later and not loop._copied


def in_this_process(folder: Path, models: list[Path], settings: dict[str, Any], **engine: Any) -> RunFolder:
    """A stage with a stub trainer in a thread, a copier, and one engine's loop."""
    parallel = settings.pop("parallel", {})
    config, run = make_rl_run(folder / "run", models[0], **settings)
    config = config.model_copy(update={"parallel": config.parallel.model_copy(update=parallel)})
    trainer = StubTrainer(config, run, models)
    thread = threading.Thread(target=trainer.train, args=(lambda batch: time.sleep(0.1),), daemon=True)
    copies = node_copies(config, run, folder / "node")
    assert copies is not None
    questions = {q.id: q for q in read_questions(run.questions_file, with_images=True)}
    with (
        Copier(copies),
        open_grader(config.score) as grader,
        Watchdog(run.rl.engines / "test.alive", config.on_policy.stall_seconds, 120.0) as watchdog,
    ):
        examiner = Examiner(config, questions, "Think.", ImageStore(run.images), grader)
        loop = Rollouts(
            config, run, examiner, grader, watchdog,
            lambda version: FakeLivingEngine(version.path(run.rl.versions), version.digest, **engine),
            name="test", lease_seconds=120.0, copies=copies,
        )  # fmt: skip
        thread.start()
        try:
            assert loop.run()
        finally:
            loop.close()
            trainer.stopped = True
            thread.join()
    return run


def units_of(run: RunFolder) -> list[dict[str, Any]]:
    logs = run.rl.engines.glob("*.jsonl")
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


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


def test_on_one_machine_nothing_is_copied(models: list[Path], tmp_path: Path) -> None:
    """There the trainer itself writes into memory, which engines elsewhere do not see."""
    config, run = make_rl_run(tmp_path / "run", models[0], versions="memory")
    assert node_copies(config, run) is None
    with pytest.raises(UsageError, match=r"rl\.versions = 'memory': the stage's one machine has the versions"):
        engines_command(config, run, Site({}), "uid", 1)
    for parallel in ({"processes": 4, "processes_per_node": 2}, {"processes": 4, "processes_per_node": 4}, {}):
        other = config.model_copy(update={"parallel": config.parallel.model_copy(update=parallel)})
        assert (node_copies(other, run) is not None) == (parallel.get("processes_per_node") == 2)
    assert node_copies(other.model_copy(update={"rl": other.on_policy.model_copy(update=NODES)}), RunFolder(run.path))
    shutil.rmtree(node_folder(run), ignore_errors=True)

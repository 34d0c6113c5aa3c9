"""The supervisor of the on-policy stage: whatever is killed, the stage ends with the same bytes.

Trainer (under torchrun) and engines are processes of their own, but for weights and texts: both are stubs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from sophia_mcore.config.functions import RewardTerm
from sophia_mcore.environments.terms import fingerprint
from sophia_mcore.errors import SophiaError
from sophia_mcore.rl.batches import read_batch
from sophia_mcore.rl.devices import node_folder
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_metadata
from sophia_mcore.train.on_policy.answers import read_rollouts
from tests.support import tiny_models
from tests.support.rl_world import make_rl_run, rollouts_of

ROOT = Path(__file__).resolve().parents[2]
SLOW_ENGINE = ("--step-seconds", "0.15")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [tiny_models.save_internvl(folder / str(seed), seed=seed) for seed in (1, 2)]


class Stage:
    """A run folder and the command that supervises its stage."""

    def __init__(self, folder: Path, models: Sequence[Path], **settings: object) -> None:
        self.config, self.run = make_rl_run(folder, models[0], **{"batches": 3, **settings})
        self.models = models

    def start(self, *, trainer: Sequence[str] = (), engine: Sequence[str] = SLOW_ENGINE) -> subprocess.Popen[str]:
        models = [word for model in self.models for word in ("--model", str(model))]
        commands = [
            ["-m", "tests.support.rl_world", *models, *trainer],
            ["-m", "tests.support.rl_engine", *engine],
        ]
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.support.rl_supervisor", str(self.run.path)),
                *(json.dumps(command) for command in commands),
                sys.executable,
            ],
            stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def shards(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.run.path)): path.read_bytes() for path in self.finished()}

    def finished(self) -> list[Path]:
        """What is being written, or a killed writer left, has a hidden name."""
        return [path for path in sorted(self.run.rl.rollouts.glob("*/*.parquet")) if path.name[0] != "."]

    def wait_for_shards(self, count: int, process: subprocess.Popen[str]) -> None:
        until = time.monotonic() + 120
        while len(self.finished()) < count:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)


def children(process: subprocess.Popen[str], module: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if module in words and "torch.distributed.run" not in words:
            found.append(child)
    return found


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    try:
        _, said = process.communicate(timeout=180)
    finally:
        process.kill()  # one that hangs; trainer and engines end with it
    assert process.returncode == code, said
    return said


@pytest.fixture(scope="module")
def undisturbed(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    stage = Stage(tmp_path_factory.mktemp("whole"), models)
    finish(stage.start(engine=()))
    assert len(rollouts_of(stage.run)) == 3 * 12
    assert not list(stage.run.rl.rollouts.glob("*/claims")) and not list(stage.run.rl.engines.glob("*.alive"))
    assert not node_folder(stage.run).exists()  # nothing stays on the node, the lock of its devices neither
    return stage.shards()


def kill_engine(process: subprocess.Popen[str]) -> None:
    (engine,) = children(process, "tests.support.rl_engine")
    engine.kill()


def stop_engine(process: subprocess.Popen[str]) -> None:
    """As a process hangs that holds the interpreter: no thread of it can notice."""
    (engine,) = children(process, "tests.support.rl_engine")
    engine.suspend()


def kill_trainer(process: subprocess.Popen[str]) -> None:
    (rank,) = children(process, "tests.support.rl_world")
    rank.kill()


@pytest.mark.parametrize("disturb", [pytest.param(kill_engine, marks=pytest.mark.slow), stop_engine, kill_trainer])
def test_what_is_lost_is_replaced(
    models: list[Path], undisturbed: dict[str, bytes], tmp_path: Path, disturb: Callable[..., None]
) -> None:
    stage = Stage(tmp_path, models, stall_seconds=1.0)
    process = stage.start()
    stage.wait_for_shards(1, process)
    disturb(process)
    finish(process)
    assert stage.shards() == undisturbed


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_stopped_stage_goes_on(
    models: list[Path], undisturbed: dict[str, bytes], tmp_path: Path, number: signal.Signals
) -> None:
    stage = Stage(tmp_path, models)
    process = stage.start()
    stage.wait_for_shards(1, process)
    others = children(process, "tests.support.rl_engine") + children(process, "tests.support.rl_world")
    assert len(others) == 2
    process.send_signal(number)
    finish(process, 130 if number == signal.SIGTERM else -number)
    gone, alive = psutil.wait_procs(others, timeout=60)
    assert len(gone) == 2 and not alive  # nothing works on without its supervisor
    done = stage.shards()
    assert 0 < len(done) < 6 and done.items() <= undisturbed.items()
    finish(stage.start(engine=()))
    assert stage.shards() == undisturbed


def test_a_trainer_that_fails_by_itself_ends_the_stage_in_its_own_words(models: list[Path], tmp_path: Path) -> None:
    stage = Stage(tmp_path, models)
    said = finish(stage.start(trainer=("--fail", "the loss is not finite at step 7")), 1)
    assert said.splitlines() == ["error: rl: rank 0: the loss is not finite at step 7"]


def test_an_engine_that_fails_again_and_again_ends_the_stage(models: list[Path], tmp_path: Path) -> None:
    stage = Stage(tmp_path, models)
    text = stage.run.config_file.read_text().replace("max_restarts = 10", "max_restarts = 1")
    stage.run.config_file.write_text(text)
    said = finish(stage.start(engine=("--fail", "out of memory")), 1)
    assert said.startswith("error: engine 0 ended 2 times; it out of memory (log: ")


def test_a_shard_says_what_its_answers_were_scored_with(models: list[Path], tmp_path: Path) -> None:
    """Where values of terms are stored, of the verdict alone too, other terms must not be mistaken for them."""
    for number, environment in enumerate(("single", "again")):
        stage = Stage(tmp_path / environment, models, environment=environment, batches=1)
        finish(stage.start(engine=()))
        found = {read_metadata(path)["metadata"].get("rewards") for path in stage.finished()}
        assert found == {(None, fingerprint(stage.config.reward_terms))[number]}
        batch = read_batch(stage.run.rl.batch(0))
        assert batch is not None
        units = [unit.id for unit in batch.units]
        heavier, other = (
            RewardTerm(function="correct", weight=2.0),
            RewardTerm(function="format", options={"pattern": "x"}),
        )
        rows = read_rollouts([batch], units, 0, [heavier])
        scored = [one.graded for one in rows if one.graded.scores]
        assert len(rows) == 12 * (number + 1) and len(scored) == 12
        assert all(one.scores == {"correct": float(one.verdict == "correct")} for one in scored)
        for terms in ([heavier, other], [other]):
            with pytest.raises(SophiaError, match="was scored with other terms"):
                read_rollouts([batch], units, 0, terms)


def test_two_engines_share_the_units(models: list[Path], undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    stage = Stage(tmp_path, models, engines=2)
    finish(stage.start())
    assert stage.shards() == undisturbed
    logs = [path.read_text().splitlines() for path in RunFolder(tmp_path).rl.engines.glob("*.jsonl")]
    assert len(logs) == 2 and sum(len(lines) for lines in logs) == 6

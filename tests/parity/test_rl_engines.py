"""Engines of the on-policy stage with a real vLLM: killed, stopped, hung, given a damaged version; the same bytes."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sophia_mcore.rl.batches import read_batch
from sophia_mcore.rl.versions import damage_file, read_version
from sophia_mcore.store.failures import read_failures
from sophia_mcore.store.layout import RunFolder
from tests.parity.conftest import ROOT, rollout_environment
from tests.support.rl_world import StubTrainer, make_rl_run, rollouts_of
from tests.support.tiny_models import SPECIAL

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
IMAGE = SPECIAL.index("<IMG_CONTEXT>")
MODULE = "sophia_mcore.generate.rollouts"
LONG = {"max_tokens": 300}  # a unit takes some seconds


def engine(python: Path, run: RunFolder, *module: str) -> subprocess.Popen[str]:
    command = [str(python), "-m", *(module or (MODULE,)), str(run.config_file)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=rollout_environment(), cwd=ROOT
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output[-4000:]
    return output


@contextmanager
def trained_by(trainer: StubTrainer, training: Callable[[int], None] = lambda batch: None) -> Iterator[None]:
    thread = threading.Thread(target=trainer.train, args=(training,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        trainer.stopped = True
        thread.join(30)


def shards(run: RunFolder) -> dict[str, bytes]:
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for path in sorted(run.rl.rollouts.glob("*/*.parquet"))
        if path.name[0] != "."
    }


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < until
        time.sleep(0.05)


def sampling(run: RunFolder) -> bool:
    """Whether a unit is claimed that is not done."""
    return any(path.name[0] != "." for path in run.rl.rollouts.glob("*/claims/*"))


def test_killed_and_stopped_engines_and_a_damaged_version(
    rollout_python: Path, tiny_internvl: Path, other_internvl: Path, tmp_path: Path
) -> None:
    models = [tiny_internvl, other_internvl]
    config, whole = make_rl_run(tmp_path / "whole", tiny_internvl, batches=2, **LONG)
    with trained_by(StubTrainer(config, whole, models)):
        finish(engine(rollout_python, whole))
    expected = shards(whole)
    rollouts = rollouts_of(whole)
    assert len(expected) == 4 and len(rollouts) == 24
    digests = {version: read_version(whole.rl.versions, version).digest for version in (0, 1)}
    assert all(one.model_digest == digests[one.batch] and IMAGE not in one.token_ids for one in rollouts)

    config, run = make_rl_run(tmp_path / "disturbed", tiny_internvl, batches=2, **LONG)
    trainer = StubTrainer(config, run, models)

    def damage(batch: int) -> None:
        if batch == 0:
            trainer.publish(1)
            weights = read_version(run.rl.versions, 1).path(run.rl.versions) / "model.safetensors"
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)
            trainer.open(1)
            trainer.lock.release()
            wait_for(damage_file(run.rl.versions, 1).exists, third)
            assert not any(name.startswith("rl/rollouts/00000001") for name in shards(run))
            content[-1] ^= 1
            weights.write_bytes(content)

    with trained_by(trainer, damage):
        first = engine(rollout_python, run)
        wait_for(lambda: sampling(run), first)
        first.send_signal(signal.SIGTERM)  # preempted
        finish(first, 75)
        unit = read_batch(run.rl.batch(0)).queue(3)
        assert unit.claimed() == 0 and not read_failures(run.rl.batch(0))  # given back, and no failure of the unit
        second = engine(rollout_python, run)
        wait_for(lambda: unit.claimed() == 1, second)
        second.kill()
        second.communicate()
        third = engine(rollout_python, run)
        finish(third)
    assert shards(run) == expected


def test_a_hung_engine_gives_its_unit_back_and_ends(rollout_python: Path, tiny_internvl: Path, tmp_path: Path) -> None:
    config, run = make_rl_run(tmp_path / "run", tiny_internvl, batches=1, stall_seconds=3.0, **LONG)
    with trained_by(StubTrainer(config, run, [tiny_internvl])):
        said = finish(engine(rollout_python, run, "tests.support.rl_hanging"), 77)
    assert "error: the engine hangs: no token for" in said
    (failure,) = read_failures(run.rl.batch(0)).values()
    assert failure.attempts == 1 and "rl.stall_seconds" in failure.error
    assert read_batch(run.rl.batch(0)).queue(3).claimed() == 0

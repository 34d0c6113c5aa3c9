"""The on-policy stage on gloo ranks beside an engine: it learns, and killed anywhere it ends with the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sophia_mcore.errors import SophiaError
from sophia_mcore.rl.copies import node_copies
from sophia_mcore.rl.devices import node_folder
from sophia_mcore.rl.versions import pointer_file, read_version, verify_version
from sophia_mcore.track.metrics import read_metrics
from sophia_mcore.train.on_policy.publish import require_room
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
    assert not any(line["skipped"] for line in updates[:2])  # else accuracy moves with the questions alone
    assert batches[-1]["accuracy"] > batches[0]["accuracy"] + 0.2
    assert max(line["rollout_gap_p99"] for line in batches if "rollout_gap_p99" in line) < 1e-4


SSR = {"fill": "ssr", "ssr": {"episode_questions": 8}, "objective": {"correction": "tis"}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> dict[str, Any]:
    _, run = whole(tmp_path_factory.mktemp("undisturbed") / "run", policy, SSR)
    return stage_world.left_behind(run)


KILLS = (
    "publish.announce:1", "publish.announce:3", "publish.announce:3+", "publish.publish:4",
    "open.open_batch:2", "loop.take_and_learn:2", "loop.measure_batch:2+", "loop.train_step:3",
    "loop.train_step:6+", "log.StageLog.batch:3+", "publish.finish_model:1", "loop.train_step:5+",
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


def test_another_layout_makes_the_versions_after_the_checkpoint_anew(
    tmp_path: Path, policy: Path, undisturbed: dict[str, Any]
) -> None:
    """Its sums come out in another order, which is no error of the checkpoint's or the rollouts'."""
    config, run = stage_world.make_stage(tmp_path / "run", policy, SSR)
    with stage_world.engine(config, run):
        with pytest.raises(RankError, match="died without an answer"):
            stage_world.train(config, run, kill="publish.announce:3+")
        parallel = config.parallel.model_copy(update={"tensor": 2, "processes": 2})
        other = config.model_copy(update={"parallel": parallel})
        assert stage_world.train(other, run, ranks=2) == [True, True]
    found = stage_world.left_behind(run)["versions"]
    assert found.keys() == undisturbed["versions"].keys() and found != undisturbed["versions"]


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a /dev/shm that can be written (a tmpfs)")
def test_versions_in_memory_are_the_same_and_leave_it(
    tmp_path: Path, policy: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pointers stay in the run folder; after a kill the newest version is written again, whatever memory has lost."""
    config, run = stage_world.make_stage(tmp_path / "run", policy, {**SSR, "versions": "memory"})
    place = node_folder(run) / "versions"
    with stage_world.engine(config, run):
        with pytest.raises(RankError, match="died without an answer"):
            stage_world.train(config, run, kill="loop.train_step:3")
        assert [path.parent for path in place.glob("*/version.json")]
        assert not list(run.rl.versions.glob("*/"))
        shutil.rmtree(place)  # as a restart of the machine does
        assert stage_world.train(config, run) == [True]
    assert not place.exists()
    found = stage_world.left_behind(run)
    for name in ("versions", "rollouts", "metrics", "model", "summary"):
        assert found[name] == undisturbed[name], name
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(SophiaError, match=r"/dev/shm has 0.0 GiB free, 3 versions need"):
            require_room(place, policy)
    with pytest.raises(SophiaError, match="no /dev/shm that can be written"):
        require_room(tmp_path, policy)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a /dev/shm that can be written (a tmpfs)")
def test_a_stage_that_moves_from_one_machine_to_several_nodes(
    tmp_path: Path, policy: Path, undisturbed: dict[str, Any]
) -> None:
    """What the one machine had in its memory is announced again in the run folder; nodes copy what has changed."""
    config, run = stage_world.make_stage(tmp_path / "run", policy, {**SSR, "versions": "memory"})
    with stage_world.engine(config, run), pytest.raises(RankError, match="died without an answer"):
        stage_world.train(config, run, kill="loop.train_step:3")
    shutil.rmtree(node_folder(run))
    nodes = config.on_policy.model_copy(update={"placement": "separate", "rollout_nodes": 1})
    several = config.model_copy(update={"rl": nodes})
    with stage_world.engine(several, run):
        assert stage_world.train(several, run) == [True]
    assert not node_folder(run).exists()
    found = stage_world.left_behind(run)
    for name in ("versions", "rollouts", "metrics", "model", "summary"):
        assert found[name] == undisturbed[name], name

    copies = node_copies(several, run, tmp_path / "node")
    assert copies is not None
    before, last = (read_version(run.rl.versions, number) for number in (3, 4))
    assert before is not None and last is not None
    copies.copy(before, threading.Event())
    with copies.reading(before) as first:
        copies.copy(last, threading.Event())
        assert first is not None
        files = list(copies.path(last).iterdir())
        linked = {path.name for path in files if path.samefile(first / path.name)}
    verify_version(copies.path(last), last.digest)
    assert any(name.endswith(".safetensors") for name in linked)  # the frozen tower
    changed = [path for path in files if path.suffix == ".safetensors" and path.name not in linked]
    assert 0 < last.bytes <= sum(path.stat().st_size for path in changed) < last.bytes + 16384  # and headers


def test_the_stored_rollouts_are_enough(tmp_path: Path, policy: Path, undisturbed: dict[str, Any]) -> None:
    """Training is a pure function of them: without an engine, checkpoints and versions come out the same."""
    config, run = whole(tmp_path / "run", policy, SSR)
    assert stage_world.left_behind(run)["versions"] == undisturbed["versions"]
    for folder in (run.rl.train, run.rl.versions, run.rl.model, run.rl.path / "old"):
        shutil.rmtree(folder)
    assert stage_world.train(config, run, replay=True) == [True]
    assert stage_world.left_behind(run) == undisturbed
    shutil.rmtree(run.rl.train)
    pointer = pointer_file(run.rl.versions, 1)
    known = json.loads(pointer.read_text())
    pointer.write_text(json.dumps({**known, "digest": "0" * 64}))
    with pytest.raises(SophiaError, match="version 1: trained again from the same answers it has the digest"):
        stage_world.train(config, run, replay=True)
    pointer.write_text(json.dumps({**known, "digest": "0" * 64, "made_with": "another layout"}))
    assert stage_world.train(config, run, replay=True) == [True]  # announced anew
    assert stage_world.left_behind(run)["versions"] == undisturbed["versions"]
    shutil.rmtree(run.rl.train)
    next(run.rl.batch(2).glob("*.parquet")).unlink()
    (run.rl.batch(2) / "taken.json").unlink()
    with pytest.raises(SophiaError, match="1 of its 2 units are not stored"):
        stage_world.train(config, run, replay=True)


@pytest.mark.parametrize("parallel", [{"processes": 2}, {"tensor": 2}, {"pipeline": 2}], ids=str)
def test_on_several_ranks(tmp_path: Path, policy: Path, parallel: dict[str, int]) -> None:
    rl = {**SSR, "batches": 2, "objective": {"correction": "tis", "kl": 0.1}}
    _, run = whole(tmp_path / "run", policy, rl, 2, parallel=parallel)
    updates = lines(run, "update")
    assert len(updates) == 4
    assert updates[0]["kl"] < 1e-6 < updates[-1]["kl"]
    assert all(line["samples"] == 8 for line in updates if not line["skipped"] and line["buffer"])


def test_a_lag_of_one(tmp_path: Path, policy: Path) -> None:
    rl = {"lag": 1, "placement": "separate", "objective": {"correction": "tis"}}
    _, run = whole(tmp_path / "run", policy, rl)
    assert {line["lag_max"] for line in lines(run, "batch")[1:]} <= {0, 1}
    assert len(lines(run, "batch")) == 4


def test_lost_groups(tmp_path: Path, policy: Path) -> None:
    """Units that are given up are left out and counted, up to the share that is allowed."""
    for share, allowed in ((0.6, True), (0.05, False)):
        config, run = stage_world.make_stage(tmp_path / str(share), policy, {"max_lost_share": share})
        with stage_world.engine(config, run, give_up=("q0",)):
            if allowed:
                assert stage_world.train(config, run) == [True]
                assert sum(line["groups_lost"] for line in lines(run, "batch")) >= 1
            else:
                with pytest.raises(SophiaError, match=r"groups are lost \(rl.max_lost_share = 0.05\).*it never works"):
                    stage_world.train(config, run)


def test_an_engine_with_other_weights_stops_the_stage(tmp_path: Path, policy: Path) -> None:
    config, run = stage_world.make_stage(tmp_path / "run", policy, {"stop_rollout_gap": 1e-9})
    with (
        stage_world.engine(config, run),
        pytest.raises(SophiaError, match="batch 0: log-probs of trainer and engine differ by"),
    ):
        stage_world.train(config, run)
    assert lines(run, "update") == []


def test_resampling_asks_further_questions(tmp_path: Path, policy: Path) -> None:
    rl = {"fill": "resample", "max_resamples": 2, "group": 2, "samples_per_update": 8, "batches": 2}
    _, run = whole(tmp_path / "run", policy, rl)
    draws = sorted(path.name for path in run.rl.rollouts.iterdir())
    assert draws[0] == "00000000" and len(draws) > 2
    assert all(line["samples"] <= 8 for line in lines(run, "update") if not line["skipped"])


def test_resampling_that_finds_too_little_goes_on_with_a_warning(
    tmp_path: Path, policy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rl = {"fill": "resample", "max_resamples": 1, "group": 2, "samples_per_update": 8, "batches": 1}
    all_wrong = {"max_tokens": 1, "overlong": "wrong"}  # each answer is cut off, so no group teaches anything
    _, run = whole(tmp_path / "run", policy, rl | all_wrong)
    assert (
        "warning: batch 0: 0 of the 4 groups that it should have teach something, after 1 further"
        in capfd.readouterr().err
    )
    assert all(line["skipped"] for line in lines(run, "update"))

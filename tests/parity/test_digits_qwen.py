"""SOPHIA and the on-policy stage with a tiny Qwen2.5-VL on digits: vLLM samples, two ranks train."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sophia_mcore.records import Rollout, Trajectory
from sophia_mcore.rl.versions import read_version
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_folder
from sophia_mcore.track.metrics import read_metrics
from tests.parity.conftest import ROOT, rollout_environment

DIGITS = ROOT / "examples" / "digits"
PLAIN = '{kind="transformers",dtype="float32"}'  # where it is not the policy that is sampled: a second of start


def python(*arguments: object) -> str:
    """Standard output of Python at the checkout's root; the test fails with the last lines if it fails."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=rollout_environment(), capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def changed(**values: object) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]


def questions(folder: Path, part: str, limit: int) -> str:
    return f'[{{kind="jsonl",path="{folder / part}.jsonl",name="{part}",limit={limit}}}]'


@pytest.mark.vllm
@pytest.mark.slow
def test_a_round_and_the_on_policy_stage_of_a_tiny_qwen(rollout_python: Path, tmp_path: Path) -> None:
    data, policy, run = tmp_path / "data", tmp_path / "qwen", RunFolder(tmp_path / "run")
    python(DIGITS / "world.py", "--out", data)
    assert "the tower reads" in python(DIGITS / "make_qwen.py", "--out", policy, "--steps", 200, "--least", 0.8)
    own = changed(run__folder=run.path, models__policy=policy, environments__rollout=rollout_python)
    own += changed(data__questions=questions(data, "train", 12), track__enabled="false")
    small = changed(
        reasoning__engine=PLAIN, evaluate__engine=PLAIN, evaluate__questions=questions(data, "test", 4),
        train__steps=4, train__save_every_steps=2, reward__use_visual_reward="false",
    )  # fmt: skip
    python("-m", "sophia_mcore.cli", "run", DIGITS / "qwen.toml", *own, *small)
    report = json.loads((run.path / "report.json").read_text())
    assert report["evaluation"]["round-0"]["n"] == report["evaluation"]["base"]["n"] == 4
    done = run.round(0)
    kept = json.loads(done.kept_summary_file.read_text())
    assert kept["captions"] == 48 and kept["caption_reward_mean"] > 0.35, "the captions name what the tower saw"
    assert len(list(read_folder(done.trajectories, Trajectory))) == kept["trajectories"] == 192
    summary = json.loads((done.train / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["logprob_after"] > summary["logprob_before"]
    assert summary["rollout_gap"]["max"] < 1e-3, "the trainer's tokens, pictures and positions are the engine's"

    stage = changed(
        rl__batches=2, rl__questions_per_batch=4, rl__group=4, rl__samples_per_update=16, rl__questions_per_unit=4,
        rl__validation="[]", rl__questions=questions(data, "practice", 8), parallel__tensor=2,
    )  # fmt: skip
    python("-m", "sophia_mcore.cli", "rl", DIGITS / "qwen_rl.toml", *own, *small, *stage)
    assert len(list(read_folder(run.rl.batch(1), Rollout))) == 16
    lines = [line for line in read_metrics(run.rl.train / "metrics.jsonl") if line["phase"] == "batch"]
    assert len(lines) == 2 and all(line["rollout_gap_p99"] < 1e-3 for line in lines)
    updated = [
        not line["skipped"] for line in read_metrics(run.rl.train / "metrics.jsonl") if line["phase"] == "update"
    ]
    versions = [read_version(run.rl.versions, number) for number in (0, 2)]
    digests = {version.digest for version in versions if version is not None}
    assert len(updated) == 2 and len(digests) == 1 + any(updated), "a batch whose groups are all wrong teaches nothing"
    assert any(run.rl.model.glob("*.safetensors"))

"""A run of two stages with a real trainer and a real vLLM, killed whole in each of them and run again: the same end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sophia_mcore.store.layout import RunFolder, checkpoint_steps
from tests.support.digits_stage import finish, make_stage, start
from tests.support.stage_world import left_behind

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
RL = """
batches = 2
[rl.train]
learning_rate = 1e-3
save_every_batches = 1
"""
STAGES = """
[[rewards]]
function = "correct"
[[rewards]]
function = "mine.py:brevity"
weight = 0.1
[[stages]]
name = "warm-up"
kind = "supervised"
[stages.set.train]
data = "data/pairs.jsonl"
steps = 6
global_batch_samples = 4
learning_rate = 1e-3
save_every_steps = 2
[[stages]]
name = "on-policy"
kind = "rl"
"""
BREVITY = "def brevity(episode, question):\n    return 1.0 - min(episode.tokens, 48) / 48\n"


def make(folder: Path, rollout_python: Path) -> RunFolder:
    run = make_stage(folder, rollout_python, questions=24, rl=RL + STAGES)
    rows = [json.loads(line) for line in (folder / "data" / "train.jsonl").read_text().splitlines()]
    pairs = [{key: row[key] for key in ("id", "image", "question")} | {"response": row["answer"]} for row in rows]
    (folder / "data" / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "mine.py").write_text(BREVITY)
    return run


def kill_when(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Kill every process of the group as soon as ``there``."""
    until = time.monotonic() + 1200
    while not there():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0][-4000:]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def end_of(run: RunFolder) -> dict[str, object]:
    """The weights that each stage ends with, and what the on-policy stage leaves behind."""
    first, second = RunFolder(run.stages / "00-warm-up"), RunFolder(run.stages / "01-on-policy")
    names = ("model.safetensors", "config.json")
    exported = {name: (first.round(0).model / name).read_bytes() for name in names}
    return {"exported": exported, **left_behind(second)}


def test_killed_in_each_stage_and_run_again_it_ends_the_same(rollout_python: Path, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", rollout_python)
    finish(start(tmp_path / "whole", "run"))
    run = make(tmp_path / "killed", rollout_python)
    first, second = RunFolder(run.stages / "00-warm-up"), RunFolder(run.stages / "01-on-policy")
    kill_when(lambda: bool(checkpoint_steps(first.round(0).checkpoints)), start(tmp_path / "killed", "run"))
    assert not first.round(0).train_summary_file.exists()
    kill_when((second.rl.versions / "00000001.json").exists, start(tmp_path / "killed", "run"))
    assert (run.stages / "00-warm-up" / "promoted.json").is_file() and not second.rl.summary_file.exists()
    before = {path: path.read_bytes() for path in second.rl.rollouts.rglob("*.parquet")}
    (tmp_path / "killed" / "mine.py").write_text(BREVITY.replace("1.0 -", "2.0 -"))
    refused = start(tmp_path / "killed", "run")
    output, _ = refused.communicate(timeout=300)
    assert refused.returncode == 2 and "Traceback" not in output and output.count("error: ") == 1, output
    told = " ".join(output.split())
    assert re.search(r"error: stage 01-on-policy: .*the content of mine\.py has changed.*--new-settings", told), output
    assert before == {path: path.read_bytes() for path in second.rl.rollouts.rglob("*.parquet")}
    (tmp_path / "killed" / "mine.py").write_text(BREVITY)
    finish(start(tmp_path / "killed", "run"))
    expected, found = end_of(whole), end_of(run)
    digests = expected["versions"]
    assert isinstance(digests, dict) and len(set(digests.values())) == 3, digests
    for name, wanted in expected.items():
        assert found[name] == wanted, name

"""`sophia rl` with a real vLLM and a real trainer, killed whole in the middle and run again: the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sophia_mcore.store.layout import RunFolder
from tests.support.digits_stage import finish, make_stage, start
from tests.support.stage_world import left_behind

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
STAGE = """
batches = 3
fill = "ssr"
[rl.ssr]
episode_questions = 24
[rl.objective]
correction = "tis"
[rl.train]
learning_rate = 1e-3
save_every_batches = 2
"""


def kill_at(run: RunFolder, process: subprocess.Popen[str], version: int) -> None:
    """Kill every process of the group as soon as a version is published: in the middle of the next batch."""
    pointer = run.rl.versions / f"{version:08d}.json"
    until = time.monotonic() + 1200
    while not pointer.exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0][-4000:]
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_whole_and_run_again_it_ends_the_same(rollout_python: Path, tmp_path: Path) -> None:
    whole = make_stage(tmp_path / "whole", rollout_python, questions=24, rl=STAGE)
    finish(start(tmp_path / "whole"))
    run = make_stage(tmp_path / "killed", rollout_python, questions=24, rl=STAGE)
    for version in (1, 2):
        kill_at(run, start(tmp_path / "killed"), version)
    assert not run.rl.summary_file.exists()
    finish(start(tmp_path / "killed"))
    expected, found = left_behind(whole), left_behind(run)
    assert len(expected["versions"]) == 4 and len(set(expected["versions"].values())) > 1
    for name, wanted in expected.items():
        assert found[name] == wanted, name

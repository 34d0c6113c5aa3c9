"""The worker under the real torchrun: four ranks, progress over a pipe, one of them killed, started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from sophia_mcore.train.checkpoint_folder import list_checkpoints
from tests.support import train_world
from tests.support.harness import run

ROOT = Path(__file__).resolve().parents[2]


class Torchrun:
    """The command that `sophia train` starts, with a pipe for its progress."""

    def __init__(self, config_file: Path) -> None:
        read_end, write_end = os.pipe()
        arguments = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"),
            *("-m", "sophia_mcore.train.worker", str(config_file), "--round", "0", "--progress-fd", str(write_end)),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            arguments, env=environment, pass_fds=[write_end], stderr=subprocess.PIPE, text=True
        )
        os.close(write_end)
        self.events = (json.loads(line) for line in os.fdopen(read_end))

    def wait_for_step(self, step: int) -> None:
        done = 0
        for event in self.events:
            done += event["event"] == "advance"
            if done == step:
                return
        pytest.fail(f"ended after {done} steps: {self.process.communicate()[1]}")

    def end(self) -> tuple[int, str]:
        return self.process.wait(), self.process.stderr.read()


@pytest.mark.slow
def test_one_rank_killed_then_the_same_command_again(tmp_path):
    policy = train_world.make_policy(tmp_path / "policy")
    layout = {"parallel": {"tensor": 2, "pipeline": 2}}
    config, folder = train_world.make_run(tmp_path / "run", policy, **layout)
    _, undisturbed = train_world.make_run(tmp_path / "undisturbed", policy, **layout)
    assert run(train_world.train, 4, config, undisturbed) == [True] * 4

    first = Torchrun(folder.config_file)
    first.wait_for_step(3)
    ranks = psutil.Process(first.process.pid).children()
    os.kill(ranks[2].pid, signal.SIGKILL)
    code, _ = first.end()
    assert code != 0
    assert [rank for rank in ranks if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE] == []
    assert not (folder.round(0).train / "summary.json").exists()

    code, errors = Torchrun(folder.config_file).end()
    assert code == 0, errors
    assert train_world.losses(folder) == train_world.losses(undisturbed)
    mine, theirs = (train_world.tensors(list_checkpoints(f.round(0).checkpoints)[0]) for f in (folder, undisturbed))
    assert [name for name in theirs if not torch.equal(mine[name], theirs[name])] == []

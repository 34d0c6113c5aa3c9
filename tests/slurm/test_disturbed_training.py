"""Training over two nodes that is preempted and loses a node ends with the weights of an undisturbed one."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from sophia_mcore.config import dump_toml
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.track.metrics import read_metrics
from sophia_mcore.train.checkpoint_folder import list_checkpoints
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.slurm_world import ROOT, attempts, finish, logs, sophia
from tests.support import train_world
from tests.support.harness import run as run_ranks

STEPS = 40


def steps_done(run: RunFolder) -> int:
    lines = read_metrics(run.round(0).train / "metrics.jsonl")
    return max((line["step"] for line in lines if "loss" in line), default=0)


def test_preempted_and_then_without_one_node(cluster: Cluster, policy: Path, tmp_path: Path) -> None:
    layout = {
        "parallel": {"pipeline": 2, "processes": 2, "processes_per_node": 1},
        "train": {"steps": STEPS, "save_every_steps": 10},
        "cluster": {"env_file": tmp_path / "cluster.env", "scripts": ROOT / "slurm"},
    }
    (tmp_path / "cluster.env").write_text(
        f"OPTIONS_ALL='--cpus-per-task=2 --mem=1G --partition=low'\nPYTHON_TRAINER={sys.executable}\n"
    )
    config, run = train_world.make_run(tmp_path / "run", policy, **layout)
    run.round(0).kept_summary_file.write_text("{}")
    config_file = tmp_path / "run.toml"
    config_file.write_text(dump_toml(config))
    same, undisturbed = train_world.make_run(tmp_path / "undisturbed", policy, **layout)

    sophia(cluster, "submit", config_file, "--only", "train")
    assert run_ranks(train_world.train, 2, same, undisturbed) == [True] * 2  # meanwhile
    wait_for(lambda: steps_done(run) > 0, "the first step", 120)
    quiet = ("--parsable", "--output=/dev/null")
    urgent = cluster.command("sbatch", *quiet, "--partition=batch", "--nodes=4", "--exclusive", "--wrap=sleep 1")
    wait_for(lambda: len(attempts(run, "train")) == 1 and attempts(run, "train")[0].code == 75, "the saved state", 180)
    at = steps_done(run)
    assert list_checkpoints(run.round(0).checkpoints)[0].name == f"step-{at:08d}"
    wait_for(lambda: urgent.strip() not in cluster.command("squeue", "-h", "-o", "%i"), "the urgent job", 180)

    wait_for(lambda: len(attempts(run, "train")) == 2 and steps_done(run) > at, "a step after the preemption", 120)
    assert attempts(run, "train")[1].restart == 1
    cluster.kill_node("node2")
    finish(cluster, 150, hurry=True)  # it is Slurm that requeues after a node failure
    cluster.start_node("node2")

    tried = attempts(run, "train")
    assert tried[-1].code == 0, logs(run)
    assert tried[0].nodes == "node[1-2]" and "node2" not in tried[-1].nodes
    assert train_world.losses(run) == train_world.losses(undisturbed)
    mine, theirs = (train_world.tensors(list_checkpoints(f.round(0).checkpoints)[0]) for f in (run, undisturbed))
    assert [name for name in theirs if not torch.equal(mine[name], theirs[name])] == []
    wait_for(lambda: cluster.sinfo().count("idle") == 4, "node2 in service again", 90)

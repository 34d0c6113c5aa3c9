"""The on-policy stage as a job: one node trains, one samples with a real vLLM, further engines join, a preemption.

New weights pass through the memory of the node that samples. An engine that joins elsewhere loads the run folder's.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sophia_mcore.records import Rollout
from sophia_mcore.rl.versions import read_version
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_folder
from tests.slurm.cluster import NODES, Cluster, wait_for
from tests.slurm.slurm_world import ROOT, Endpoint, attempts, finish, logs, make_config, sophia

VLLM = {
    "kind": "vllm", "dtype": "float32", "threads": 1, "kv_cache_mib": 64, "max_sequences": 16,
    "max_model_length_tokens": 256,
}  # fmt: skip
BATCHES = 6


@pytest.fixture(scope="module")
def rollout_python() -> Path:
    python = ROOT / ".venv-vllm" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} is missing: `make env` makes the rollout environment")
    return python


def rollouts_of(run: RunFolder) -> list[Rollout]:
    folders = sorted(path.parent for path in run.rl.rollouts.glob("*/units.json"))
    return [one for folder in folders for one in read_folder(folder, Rollout)]


def done(run: RunFolder, count: int) -> bool:
    return sum(path.name[0] != "." for path in run.rl.rollouts.glob("*/*.parquet")) >= count


def test_a_stage_over_two_nodes(
    cluster: Cluster, policy: Path, endpoint: Endpoint, rollout_python: Path, tmp_path: Path
) -> None:
    rl = {
        "batches": BATCHES, "questions_per_batch": 4, "group": 4, "samples_per_update": 16, "max_tokens": 32,
        "questions_per_unit": 2, "lag": 1, "placement": "separate", "rollout_nodes": 1, "engine": VLLM,
        "versions": "memory", "validate_every_batches": 100, "objective": {"correction": "tis"},
        "train": {"save_every_batches": 1},
    }  # fmt: skip
    config_file = make_config(
        tmp_path, policy, endpoint,
        rl=rl, parallel={"pipeline": 1, "processes": 1, "processes_per_node": 1}, evaluate={"questions": []},
    )  # fmt: skip
    env = tmp_path / "cluster.env"
    lines = [line for line in env.read_text().splitlines() if not line.startswith("PYTHON_ROLLOUT")]
    lines += [f"PYTHON_ROLLOUT={rollout_python}", "OPTIONS_RL=--partition=low", "OPTIONS_RL_ENGINES=--partition=low"]
    env.write_text("\n".join(lines) + "\n")
    run = RunFolder(tmp_path / "run")

    assert "questions of round 0" in sophia(cluster, "submit", config_file, "--rl").stdout
    wait_for(lambda: done(run, 2), "the first answers", 300)
    assert "submitted 1 engines" in sophia(cluster, "submit", config_file, "--rl", "--engines", "1").stdout
    status = sophia(cluster, "status", run.path).stdout
    assert any(line.startswith("rl ") and "running" in line for line in status.splitlines()), status
    quiet = ("--parsable", "--output=/dev/null")
    cluster.command("sbatch", *quiet, "--partition=batch", "--nodes=4", "--exclusive", "--wrap=sleep 1")
    wait_for(lambda: [a.code for a in attempts(run, "rl")][:1] == [75], "the state that is put down", 120)
    finish(cluster, 400, hurry=True)

    tried = attempts(run, "rl")
    assert [attempt.code for attempt in tried] == [75, 0], logs(run)
    assert json.loads(run.rl.summary_file.read_text())["batches"] == BATCHES
    rollouts = rollouts_of(run)
    assert len({one.id for one in rollouts}) == len(rollouts) == BATCHES * 16
    assert all(0 <= one.batch - one.version <= 1 for one in rollouts)
    versions = {number: read_version(run.rl.versions, number) for number in range(BATCHES + 1)}
    assert all(one.model_digest == versions[one.version].digest for one in rollouts)
    units = [json.loads(line) for log in run.rl.engines.glob("*.jsonl") for line in log.read_text().splitlines()]
    assert len(units) >= BATCHES * 2 and any(unit["copied"] for unit in units)
    assert not any("no copy of new weights" in log.read_text() for log in run.slurm.logs.glob("rl-*.log"))
    assert [path for node in NODES for path in cluster.memory(node).glob("sophia-*")] == []
    assert (run.rl.model / "model.safetensors.index.json").is_file() or list(run.rl.model.glob("*.safetensors"))
    assert "nothing is missing" in sophia(cluster, "submit", config_file, "--rl").stdout

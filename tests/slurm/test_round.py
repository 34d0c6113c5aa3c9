"""A whole round through `sophia submit` on a real Slurm, MLflow's server dying meanwhile; then a second one."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sophia_mcore.config import load_config
from sophia_mcore.launch.local import run_phases
from sophia_mcore.launch.state import states
from sophia_mcore.records import Caption, Trajectory
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import model_digest
from sophia_mcore.store.shards import read_folder, read_metadata, shard_files
from sophia_mcore.track.metrics import read_metrics
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.mlflow_server import MlflowServer
from tests.slurm.slurm_world import Endpoint, attempts, finish, logs, make_config, sophia

PHASES = ["questions", "captions", "reasoning", "score", "train", "export", "evaluate", "report"]
HAS_SERVER = all(importlib.util.find_spec(name) for name in ("mlflow", "flask", "flask_cors"))


@dataclass
class Round:
    """A round that Slurm has done, and what was left behind by it."""

    config_file: Path
    run: RunFolder
    endpoint: Endpoint
    server: MlflowServer
    submitted: str


@pytest.fixture(scope="module")
def done(cluster: Cluster, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Round]:
    folder = tmp_path_factory.mktemp("round")
    server = MlflowServer(folder / "mlflow")
    if HAS_SERVER:
        server.prepare()
    track = {"enabled": True, "tracking_uri": server.url, "experiment": "round", "timeout_seconds": 20.0}
    with Endpoint() as endpoint, contextlib.closing(server):
        config_file, run = make_config(folder / "world", policy, endpoint, track=track), RunFolder(folder / "world/run")
        submitted = sophia(cluster, "submit", config_file).stdout
        if HAS_SERVER:
            server.start()
            metrics = run.round(0).train / "metrics.jsonl"
            wait_for(lambda: any("loss" in line for line in read_metrics(metrics)), "the first step", 120)
            sophia(cluster, "track", run.path)
            server.kill()
        finish(cluster, 180)
        yield Round(config_file, run, endpoint, server, submitted)


def test_a_round_on_two_nodes(cluster: Cluster, done: Round) -> None:
    assert [line.split()[0] for line in done.submitted.splitlines()[1:]] == PHASES
    config, run = load_config(done.config_file), done.run
    open_ = [state for state in states(config, run, [0]) if not state.finished]
    assert open_ == [], logs(run)
    assert len(list(read_folder(run.round(0).captions, Caption))) == 12
    trajectories = [trajectory.id for trajectory in read_folder(run.round(0).trajectories, Trajectory)]
    assert len(trajectories) == len(set(trajectories)) == 24
    assert done.endpoint.prompts.total() == len(done.endpoint.prompts) == 12 + 24  # nothing was done twice
    (training,) = attempts(run, "train")
    assert training.nodes == "node[1-2]" and training.code == 0
    (report,) = attempts(run, "report")
    assert report.code == 0 and "not reachable; upload later with 'sophia track" in logs(run)
    assert "nothing is missing" in sophia(cluster, "submit", done.config_file).stdout
    assert sophia(cluster, "status", run.path).stdout.count(" ok") == 8


@pytest.mark.skipif(
    not HAS_SERVER, reason="NOT TESTED with MLflow's server: pip install flask flask-cors mlflow-skinny"
)
def test_the_mlflow_server_was_killed_and_is_back(cluster: Cluster, done: Round) -> None:
    from mlflow.tracking import MlflowClient

    down = sophia(cluster, "track", done.run.path, check=False)
    assert down.returncode == 1 and "nothing is lost" in down.stderr
    done.server.start()
    sophia(cluster, "track", done.run.path)
    client = MlflowClient(done.server.url)
    experiment = client.get_experiment_by_name("round")
    found = client.search_runs([experiment.experiment_id])
    runs = {run.data.tags["sophia.phase"]: run for run in found}
    assert len(runs) == len(found)
    parent, train = runs.pop("round"), runs["train"]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {phase.split()[0] for phase in runs} >= {*PHASES, "system"}
    loss = client.get_metric_history(train.info.run_id, "loss")
    assert [point.step for point in loss] == [1, 2, 3, 4, 5, 6]  # each once
    lineage = {name.removeprefix("lineage."): value for name, value in parent.data.tags.items() if "lineage." in name}
    policy, trained = load_config(done.config_file).models.policy, done.run.round(0).model
    assert lineage["evaluation.base/greedy.model_digest"] == model_digest(policy)
    assert lineage["evaluation.round-0/greedy.model_digest"] == model_digest(trained)
    assert lineage["export.from_checkpoint"] == lineage["checkpoint.name"] == "step-00000006"
    assert {
        f"{link}.sha256" for link in ("kept", "verdicts", "trajectories", "captions", "questions")
    } <= lineage.keys()


@pytest.mark.slow
def test_the_second_round_is_captioned_by_the_trained_policy(
    cluster: Cluster, endpoint: Endpoint, policy: Path, tmp_path: Path
) -> None:
    """On another node than the first, whose GPU has memory errors."""
    in_process = {"kind": "transformers", "dtype": "float32"}  # the endpoint would answer for any policy
    config_file = make_config(tmp_path, policy, endpoint, captions={"engine": in_process})
    config = load_config(config_file)
    run = run_phases(config, PHASES[: PHASES.index("export") + 1], [0])
    query = tmp_path / "bin" / "nvidia-smi"
    query.parent.mkdir()
    query.write_text('#!/bin/sh\n[ "$SLURMD_NODENAME" = node1 ] && echo "0, 3" || echo "0, 0"\n')
    query.chmod(0o755)
    with open(tmp_path / "cluster.env", "a") as file:
        file.write(f"TASKS_CAPTIONS=1\nPATH={query.parent}:$PATH\n")
    sophia(cluster, "submit", config_file, "--rounds", "2", "--only", "captions")
    finish(cluster)
    shards = shard_files(run.round(1).captions)
    assert shards, logs(run)
    used = {read_metadata(path)["metadata"]["model_digest"] for path in shards}
    assert used == {model_digest(run.round(0).model)} != {model_digest(config.models.policy)}
    ill, well = attempts(run, "captions")[-2:]
    assert (ill.nodes, ill.code, ill.message) == ("node1", 76, "node node1: uncorrected memory (ECC) errors on GPU 0")
    assert well.nodes != "node1" and (well.job, well.code, well.restart) == (ill.job, 0, 1)
    assert f"node node1 is left out by job {ill.job.partition('_')[0]}" in sophia(cluster, "status", run.path).stdout

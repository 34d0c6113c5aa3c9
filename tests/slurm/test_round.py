"""A whole round through `sophia submit`, on nodes of a real Slurm."""

from __future__ import annotations

from pathlib import Path

from cluster import Cluster
from slurm_world import Endpoint, attempts, finish, logs, make_config, sophia

from sophia_mcore.config import load_config
from sophia_mcore.launch.state import states
from sophia_mcore.records import Caption, Trajectory
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_folder


def test_a_round_on_two_nodes(cluster: Cluster, endpoint: Endpoint, policy: Path, tmp_path: Path) -> None:
    config_file = make_config(tmp_path, policy, endpoint)
    done = sophia(cluster, "submit", config_file)
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [
        "questions", "captions", "reasoning", "score", "train", "export", "evaluate", "report",
    ]  # fmt: skip
    finish(cluster, 180)
    config, run = load_config(config_file), RunFolder(tmp_path / "run")
    open_ = [state for state in states(config, run, [0]) if not state.finished]
    assert open_ == [], logs(run)
    assert len(list(read_folder(run.round(0).captions, Caption))) == 12
    trajectories = [trajectory.id for trajectory in read_folder(run.round(0).trajectories, Trajectory)]
    assert len(trajectories) == len(set(trajectories)) == 24
    assert endpoint.prompts.total() == len(endpoint.prompts) == 12 + 24  # nothing was done twice
    (training,) = attempts(run, "train")
    assert training.nodes == "node[1-2]" and training.code == 0
    assert "nothing is missing" in sophia(cluster, "submit", config_file).stdout
    assert sophia(cluster, "status", run.path).stdout.count(" ok") == 8

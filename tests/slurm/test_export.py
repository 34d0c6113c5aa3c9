"""Sites that demand `--export=NONE`: tasks get the snapshot and the env file all the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sophia_mcore.store.layout import RunFolder
from tests.slurm.cluster import Cluster
from tests.slurm.slurm_world import Endpoint, finish, logs, make_config, sophia


@pytest.mark.parametrize("export", ["--export=NONE", "--export=HOME"])
def test_a_task_gets_the_snapshot_and_the_env_file(
    cluster: Cluster, policy: Path, endpoint: Endpoint, tmp_path: Path, export: str
) -> None:
    config_file, run = make_config(tmp_path / "world", policy, endpoint), RunFolder(tmp_path / "world" / "run")
    seen = tmp_path / "seen.env"
    python = tmp_path / "python.sh"
    python.write_text(f'#!/bin/bash\nenv > {seen}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    site = config_file.with_name("cluster.env")
    text = site.read_text().replace("--mem=1G'", f"--mem=1G {export}'")
    text = text.replace(f"PYTHON_TRAINER={sys.executable}", f"PYTHON_TRAINER={python}")
    site.write_text(text + "NCCL_SOCKET_IFNAME=ib0\n")
    sophia(cluster, "submit", config_file, "--only", "questions")
    finish(cluster)
    assert run.questions_file.is_file(), logs(run)
    found = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
    assert Path(found["PYTHONPATH"]).is_relative_to(run.slurm.path) and found["NCCL_SOCKET_IFNAME"] == "ib0"
    assert found["OMP_NUM_THREADS"] == "1" and found["SLURM_EXPORT_ENV"] == "ALL"

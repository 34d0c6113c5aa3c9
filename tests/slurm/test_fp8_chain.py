"""A chain with FP8 reaches its model, with nothing done by hand; and a chain that breaks off still ends in a report."""

from __future__ import annotations

import json
from pathlib import Path

from sophia_mcore.config import load_config
from sophia_mcore.launch.state import states
from sophia_mcore.store.layout import RunFolder
from tests.slurm.cluster import Cluster
from tests.slurm.slurm_world import Endpoint, attempts, finish, logs, make_config, sophia

LOOSE = {
    "max_logprob_gap_mean": 10.0, "max_logprob_gap_p99": 10.0, "min_gradient_cosine": 0.0,
    "max_gradient_norm_gap": 10.0, "max_loss_gap": 10.0, "samples": 2, "steps": 2,
}  # fmt: skip


def fp8(**check: float) -> dict[str, object]:
    return {"recipe": "tensorwise", "backend": "emulated", "check": LOOSE | check}


def test_a_chain_with_fp8_ends_with_a_model(cluster: Cluster, policy: Path, tmp_path: Path) -> None:
    with Endpoint() as endpoint:
        config_file = make_config(tmp_path / "world", policy, endpoint, fp8=fp8())
        run = RunFolder(tmp_path / "world/run")
        assert "fp8-check" in sophia(cluster, "submit", config_file, "--dry-run").stdout
        sophia(cluster, "submit", config_file)
        finish(cluster, 240)
    open_ = [state for state in states(load_config(config_file), run, [0]) if not state.finished]
    assert open_ == [], logs(run)
    (check,) = attempts(run, "fp8-check")
    assert (check.nodes, check.code) == ("node[1-2]", 0)
    assert json.loads(run.fp8_check_file.read_text())["passed"] and run.fp8_check_html.is_file()
    assert list(run.round(0).model.glob("*.safetensors"))


def test_a_check_that_is_not_passed_ends_the_chain_with_a_report(
    cluster: Cluster, policy: Path, tmp_path: Path
) -> None:
    with Endpoint() as endpoint:
        config_file = make_config(tmp_path / "world", policy, endpoint, fp8=fp8(max_logprob_gap_mean=1e-9))
        run = RunFolder(tmp_path / "world/run")
        sophia(cluster, "submit", config_file)
        finish(cluster, 240)
    (check,) = attempts(run, "fp8-check")
    assert check.code == 1 and "FP8 is not admitted: log-prob gap mean" in check.message, logs(run)
    assert attempts(run, "train") == [] and not run.round(0).model.exists()
    assert run.report_html.is_file() and run.fp8_check_html.is_file(), logs(run)
    assert "FP8 is not admitted" in sophia(cluster, "status", run.path).stdout

"""Arrays whose tasks are killed, preempted, out of time or cancelled: every unit ends once, nothing is lost."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psutil
import pytest

from sophia_mcore.config import load_config
from sophia_mcore.launch.local import run_phases
from sophia_mcore.launch.phases import phase_named
from sophia_mcore.phase import PhaseState
from sophia_mcore.records import Caption, Trajectory
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import read_folder, shard_files
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.slurm_world import QUESTIONS, Endpoint, attempts, engine_of, finish, jobs, logs, make_config, sophia

REQUESTS = 2 * QUESTIONS  # captions


def state(config_file: Path, phase: str) -> PhaseState:
    config = load_config(config_file)
    return phase_named(phase).state_of(Round(config, RunFolder(config.run.folder), 0))


def set_options(config_file: Path, **options: str) -> None:
    """Append OPTIONS_ or TASKS_ lines to the env file; the last one of a name counts."""
    with open(config_file.parent / "cluster.env", "a") as file:
        file.writelines(f"{name}='{value}'\n" for name, value in options.items())


def submit_captions(cluster: Cluster, config_file: Path) -> RunFolder:
    """The questions are checked here, as `sophia run` does it: what was begun without Slurm goes on with it."""
    run = run_phases(load_config(config_file), ["questions"], [0])
    sophia(cluster, "submit", config_file, "--only", "captions")
    return run


def shards(run: RunFolder) -> list[Path]:
    folder = run.round(0).captions
    return shard_files(folder) if folder.is_dir() else []


def assert_captions_once(run: RunFolder, endpoint: Endpoint, redone: int) -> None:
    """Each caption is there once; at most ``redone`` requests were sent again."""
    ids = [caption.id for caption in read_folder(run.round(0).captions, Caption)]
    assert len(ids) == len(set(ids)) == REQUESTS, logs(run)
    assert len(endpoint.prompts) == REQUESTS
    assert endpoint.prompts.total() - REQUESTS <= redone


def one_unit_at_a_time(endpoint: Endpoint) -> dict[str, Any]:
    """The section of captions with which a task that ends loses one unit at most: two requests."""
    return {"engine": engine_of(endpoint, across_units=False)}


@pytest.mark.parametrize(
    ("across_units", "redone"),
    [
        (False, 2),  # the unit that was being sampled
        # Two requests in flight at the kill. Answers take equally long, so that they end in the order in which they
        # were asked for: of the units that are open, the oldest alone may have a finished answer, and one at most, as
        # a unit of two finished answers is written before anything else is asked for.
        (True, 2 + 1),
    ],
)
def test_a_killed_task_and_a_second_submit(
    cluster: Cluster, endpoint: Endpoint, policy: Path, tmp_path: Path, across_units: bool, redone: int
) -> None:
    captions = {"engine": engine_of(endpoint, across_units=across_units)}
    config_file = make_config(tmp_path, policy, endpoint, captions=captions)
    endpoint.seconds = 1.0
    run = submit_captions(cluster, config_file)
    refused = sophia(cluster, "submit", config_file, check=False)
    assert refused.returncode == 2 and "is running as 1 Slurm jobs" in refused.stderr
    wait_for(lambda: shards(run), "the first unit", 180)
    victims = [p for p in psutil.process_iter(["cmdline"]) if is_task(p, run)]
    written = {path: path.stat().st_mtime_ns for path in shards(run)}
    victims[0].kill()
    finish(cluster)
    assert_captions_once(run, endpoint, redone)
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())
    assert sorted(attempt.code or -1 for attempt in attempts(run, "captions"))[0] == -1  # no end: it was killed
    assert all(job.state == "COMPLETED" for job in jobs(cluster, "captions")[-2:])


def is_task(process: psutil.Process, run: RunFolder) -> bool:
    line = process.info["cmdline"] or []
    return "sophia_mcore.launch.worker" in line and str(run.config_file) in line and "srun" not in line[0]


def test_preempted_then_cancelled_then_continued(
    cluster: Cluster, endpoint: Endpoint, policy: Path, tmp_path: Path
) -> None:
    config_file = make_config(tmp_path, policy, endpoint, captions=one_unit_at_a_time(endpoint))
    set_options(config_file, OPTIONS_CAPTIONS="--partition=low --nodelist=node4", TASKS_CAPTIONS="1")
    endpoint.seconds = 1.0
    run = submit_captions(cluster, config_file)
    wait_for(lambda: shards(run), "the first unit", 180)
    cluster.command("sbatch", "--output=/dev/null", "--nodelist=node4", "--exclusive", "--wrap=sleep 1")
    wait_for(lambda: attempts(run, "captions")[0].code == 75, "the unit given back", 90)
    wait_for(lambda: len(attempts(run, "captions")) == 2, "a second attempt", 180)
    before = len(shards(run))
    wait_for(lambda: len(shards(run)) > before, "another unit", 180)
    assert "cancelled 1 jobs" in sophia(cluster, "cancel", run.path).stdout
    finish(cluster)
    assert not state(config_file, "captions").finished
    assert state(config_file, "captions").claimed == 0
    sophia(cluster, "submit", config_file, "--only", "captions")
    finish(cluster)
    assert_captions_once(run, endpoint, redone=4)
    assert [attempt.code for attempt in attempts(run, "captions")] == [75, 75, 0]


def test_time_limit(cluster: Cluster, endpoint: Endpoint, policy: Path, tmp_path: Path) -> None:
    config_file = make_config(tmp_path, policy, endpoint, captions=one_unit_at_a_time(endpoint))
    set_options(config_file, OPTIONS_CAPTIONS="--time=2 --signal=B:USR1@110", TASKS_CAPTIONS="1")
    endpoint.seconds = 12.0  # longer in all than the time, however fast the machine: Slurm looks at limits now and then
    run = submit_captions(cluster, config_file)
    wait_for(lambda: attempts(run, "captions") and attempts(run, "captions")[0].code == 75, "the signal", 90)
    endpoint.seconds = 0.0
    (job,) = {attempt.job.partition("_")[0] for attempt in attempts(run, "captions")}
    cluster.command("scontrol", "update", f"JobId={job}", "TimeLimit=30")  # the same ten seconds may not do again
    finish(cluster)
    assert_captions_once(run, endpoint, redone=2)
    codes = [attempt.code for attempt in attempts(run, "captions")]
    assert codes[0] == 75 and codes[-1] == 0 and {*codes[1:-1]} <= {138}  # 138: before Python listens


def test_a_failing_shard_costs_only_itself(cluster: Cluster, endpoint: Endpoint, policy: Path, tmp_path: Path) -> None:
    config_file = make_config(tmp_path, policy, endpoint)
    endpoint.broken = lambda prompt: "What is 3?" in prompt
    sophia(cluster, "submit", config_file)
    finish(cluster)
    run = RunFolder(tmp_path / "run")
    found = state(config_file, "reasoning")
    assert (found.done, found.failed, found.claimed) == (QUESTIONS - 1, 1, 0), logs(run)
    told = sophia(cluster, "status", run.path).stdout
    assert "1 of 6 work units failed, 000003-" in told and "this prompt cannot be answered" in told
    assert "score of round 0 cannot start: reasoning of round 0 is not finished (5 of 6 done)" in told.replace(
        "\n", " "
    )
    assert jobs(cluster, "export")[-1].state == "CANCELLED"  # it waited for a job that can no longer succeed
    assert "it never ran" in told

    done = endpoint.prompts.copy()
    endpoint.broken = lambda prompt: False
    again = sophia(cluster, "submit", config_file, "--only", "reasoning")
    assert [line.split()[0] for line in again.stdout.splitlines()[1:]] == ["reasoning"]
    finish(cluster)
    assert state(config_file, "reasoning").finished
    ids = [trajectory.id for trajectory in read_folder(run.round(0).trajectories, Trajectory)]
    assert len(ids) == len(set(ids)) == 4 * QUESTIONS
    assert all(endpoint.prompts[key] == count == 1 for key, count in done.items())


def test_dependency_that_can_never_be_met(cluster: Cluster, endpoint: Endpoint, policy: Path, tmp_path: Path) -> None:
    """On a cluster that keeps such jobs, they wait for ever: status says so, and submit goes on without them."""
    config_file = make_config(tmp_path, policy, endpoint)
    run = submit_captions(cluster, config_file)
    finish(cluster)
    (uid,) = (run.path / "track.uid").read_text().split()
    failed = cluster.command("sbatch", "--output=/dev/null", "--parsable", "--wrap=exit 1").strip()
    wait_for(lambda: failed not in cluster.command("squeue", "-h", "-o", "%i"), "the failing job", 90)
    cluster.command(
        *("sbatch", "--output=/dev/null", f"--dependency=afterok:{failed}", f"--comment=sophia:{uid}:reasoning:0"),
        *("--kill-on-invalid-dep=no", "--job-name=reasoning-r0", "--wrap=true"),
    )
    wait_for(lambda: "DependencyNeverSatisfied" in cluster.command("squeue", "-h", "-o", "%r"), "the verdict", 90)
    assert "waits for a job that can no longer succeed" in sophia(cluster, "status", run.path).stdout
    sophia(cluster, "submit", config_file, "--only", "reasoning")
    finish(cluster)
    assert state(config_file, "reasoning").finished
    assert endpoint.prompts.total() == len(endpoint.prompts) == REQUESTS + 4 * QUESTIONS


@pytest.mark.parametrize(
    ("lines", "settings", "told"),
    [
        ({"OPTIONS_CPU": "--partition=nowhere"}, {}, "invalid partition specified: nowhere"),
        ({"OPTIONS_CPU": "--gpus-per-node=9"}, {}, "Requested node configuration is not available"),
        ({"TASKS_CAPTIONS": "many"}, {}, "TASKS_CAPTIONS must be a number from 1"),
        ({}, {"cluster": {"env_file": "nowhere.env"}}, "nowhere.env: no such env file (cluster.env_file); copy"),
        ({}, {"parallel": {"processes": 3, "pipeline": 1, "processes_per_node": 2}}, "not a multiple of"),
    ],
)
def test_bad_input_is_refused_at_submission(
    cluster: Cluster, endpoint: Endpoint, policy: Path, tmp_path: Path, lines: dict, settings: dict, told: str
) -> None:
    config_file = make_config(tmp_path, policy, endpoint, **settings)
    set_options(config_file, **lines)
    before = len(jobs(cluster))
    for flags in ((), ("--dry-run",)):
        refused = sophia(cluster, "submit", config_file, *flags, check=False)
        assert refused.returncode == 2
        assert told in " ".join((refused.stdout + refused.stderr).split()), refused.stdout + refused.stderr
    assert len(jobs(cluster)) == before


def test_a_full_filesystem(cluster: Cluster, endpoint: Endpoint, policy: Path, tmp_path: Path) -> None:
    own = {"run": {"name": "tiny", "folder": cluster.small / "run"}, "captions": one_unit_at_a_time(endpoint)}
    config_file = make_config(tmp_path, policy, endpoint, **own)
    endpoint.seconds = 0.5
    run = submit_captions(cluster, config_file)
    wait_for(lambda: shards(run), "the first unit", 180)
    ballast = cluster.small / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    finish(cluster)
    assert not state(config_file, "captions").finished
    told = " ".join(sophia(cluster, "status", run.path).stdout.split())
    assert "No space left on device (free some space and run again)" in told, told
    refused = sophia(cluster, "submit", config_file, "--only", "captions", check=False)
    assert refused.returncode == 1 and "No space left on device" in refused.stderr
    written = {path: path.stat().st_mtime_ns for path in shards(run)}
    ballast.unlink()
    endpoint.seconds = 0.0
    sophia(cluster, "submit", config_file, "--only", "captions")
    finish(cluster)
    assert_captions_once(run, endpoint, redone=4)
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())


def test_a_node_that_does_not_see_run_or_model(
    cluster: Cluster, endpoint: Endpoint, policy: Path, tmp_path: Path
) -> None:
    config_file = make_config(tmp_path / "world", policy, endpoint)
    set_options(config_file, OPTIONS_ALL="--cpus-per-task=2 --mem=1G --nodelist=node3")
    try:
        cluster.restart_node("node3", hide=(policy,))
        wait_for(lambda: cluster.sinfo().count("idle") == 4, "node3", 90)
        run = submit_captions(cluster, config_file)
        finish(cluster)
        told = " ".join(sophia(cluster, "status", run.path).stdout.split())
        assert "captions of round 0: failed on node3" in told and str(policy) in told
        cluster.restart_node("node3", hide=(tmp_path / "world",))
        wait_for(lambda: cluster.sinfo().count("idle") == 4, "node3", 90)
        sophia(cluster, "submit", config_file, "--only", "captions")
        finish(cluster)
        assert f"does node3 see {run.path}?" in " ".join(sophia(cluster, "status", run.path).stdout.split())
    finally:
        cluster.restart_node("node3")
        wait_for(lambda: cluster.sinfo().count("idle") == 4, "node3", 90)

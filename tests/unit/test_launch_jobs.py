"""Planning of Slurm jobs, their command lines, health checks and attempts: without a cluster."""

from __future__ import annotations

import errno
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from sophia_mcore.config import load_config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.phases import names_in, phase_named, phases_in, phases_of
from sophia_mcore.launch.slurm import health
from sophia_mcore.launch.slurm.attempts import Attempt, begin_attempt, end_attempt, read_attempts
from sophia_mcore.launch.slurm.commands import QueuedJob
from sophia_mcore.launch.slurm.jobs import Site, comment, parse_comment, plan_jobs, read_site, sbatch_command
from sophia_mcore.launch.slurm.status import seconds_left
from sophia_mcore.launch.state import check_inputs, states
from sophia_mcore.phase import PhaseState, SlurmTask
from sophia_mcore.store.layout import Round, RunFolder
from tests.support.generate_world import make_config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(ROOT.glob("examples/*/run.toml"))
SITE = Site({"OPTIONS_ALL": "--account=a", "OPTIONS_GPU": "--partition=gpu", "OPTIONS_CPU": "--partition=cpu",
             "OPTIONS_TRAIN": "--time=9", "TASKS_CAPTIONS": "16"})  # fmt: skip


def phases(rounds: int = 1, **finished: int) -> list[PhaseState]:
    """All phases; ``finished`` phases of round 0, others with the given number of units left of 20."""
    found = []
    for index in range(rounds):
        for phase in phases_of(index):
            left = finished.get(phase.name) if index == 0 else None
            if phase.name == "fp8-check" and left is None:
                left = 0  # no part of the run
            done = {} if left is None else {"total": 20, "done": 20 - left, "finished": left == 0}
            found.append(PhaseState(phase=phase.name, round=index, **done))
    return found


def test_the_chain_of_two_rounds(tmp_path: Path) -> None:
    jobs = plan_jobs(make_config(tmp_path), SITE, phases(2))
    after = {job.key: job.after for job in jobs}
    assert len(jobs) == 15
    assert after["captions", 1] == (("export", 0),)  # with the trained policy
    assert after["train", 0] == (("score", 0),) and after["report", 1] == (("evaluate", 1),)
    assert after["questions", 0] == ()


def test_the_fp8_check_is_part_of_the_chain(tmp_path: Path) -> None:
    fp8 = {"recipe": "tensorwise", "backend": "emulated"}
    parallel = {"tensor": 8, "processes": 16, "processes_per_node": 8}
    config = make_config(tmp_path, fp8=fp8, parallel=parallel)
    found = states(config, RunFolder(tmp_path), range(2))
    jobs = {job.key: job for job in plan_jobs(config, SITE, found)}
    assert jobs["fp8-check", 0].after == (("score", 0),) and ("fp8-check", 1) not in jobs
    assert jobs["train", 0].after == (("fp8-check", 0),) and ("fp8-check", 0) not in jobs["train", 1].after
    assert "--nodes=2" in jobs["fp8-check", 0].options
    skipped = make_config(tmp_path, fp8=fp8 | {"check": {"skip": True}})
    assert "fp8-check" not in {job.phase for job in plan_jobs(skipped, SITE, states(skipped, RunFolder(tmp_path), [0]))}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_the_chain_of_every_example_is_whole(tmp_path: Path, file: Path) -> None:
    """Whatever the training depends on has a job, and every job a script: nothing is left to be done by hand."""
    config = load_config(file, sets=[f"run.folder={tmp_path}"])
    jobs = {job.phase: job for job in plan_jobs(config, SITE, states(config, RunFolder(tmp_path), [0]))}
    assert [*jobs] == [phase.name for phase in phases_in("round") if phase.wanted(config)]
    assert ("fp8-check" in jobs) == (config.fp8.used and not config.fp8.check.skip)
    if "fp8-check" in jobs:
        assert jobs["train"].after == (("fp8-check", 0),)
        assert jobs["fp8-check"].options[:4] == jobs["train"].options[:4]  # the same nodes and GPUs
    ids = {job.key: name for name, job in jobs.items()}
    for job in jobs.values():
        command = sbatch_command(job, RunFolder(tmp_path), ROOT / "slurm", "u", ids)
        assert any(Path(word).name == phase_named(job.phase).script_name for word in command)
    report = sbatch_command(jobs["report"], RunFolder(tmp_path), ROOT / "slurm", "u", ids)
    assert any(word.startswith("--dependency=afterany:") and "afterok" not in word for word in report)


def test_only_what_is_missing_is_planned(tmp_path: Path) -> None:
    done = {"questions": 0, "captions": 3, "score": 0, "export": 0, "evaluate": 0, "report": 0}
    jobs = {job.phase: job for job in plan_jobs(make_config(tmp_path), SITE, phases(**done))}
    assert list(jobs) == ["captions", "reasoning", "train", "report"]
    assert jobs["captions"].tasks == 3 and jobs["captions"].after == ()  # no more tasks than units
    assert jobs["train"].after == ()  # what lies before it is finished
    assert jobs["report"].after == (("train", 0),)
    assert plan_jobs(make_config(tmp_path), SITE, phases(**dict.fromkeys(names_in("round"), 0))) == []


def test_commands(tmp_path: Path) -> None:
    config = make_config(tmp_path, parallel={"tensor": 8, "pipeline": 4, "processes": 64, "processes_per_node": 8})
    jobs = {job.phase: job for job in plan_jobs(config, SITE, phases())}
    ids = {job.key: str(number) for number, job in enumerate(jobs.values(), 100)}
    run = RunFolder(tmp_path)
    train = sbatch_command(jobs["train"], run, ROOT / "slurm", "u", ids)
    asked = ["--account=a", "--partition=gpu", "--nodes=8", "--gpus-per-node=8", "--time=9", "--signal=B:USR1@180"]
    assert train[-10:-4] == asked
    assert f"--dependency=afterany:{ids['score', 0]}" in train  # after an array, whatever became of its tasks
    export = sbatch_command(jobs["export"], run, ROOT / "slurm", "u", ids)
    assert f"--dependency=afterok:{ids['train', 0]}" in export and "--kill-on-invalid-dep=yes" in export
    assert "--partition=cpu" in export and not any("gpus" in word for word in export)
    assert "--array=0-15" in sbatch_command(jobs["captions"], run, ROOT / "slurm", "u", ids)
    test = sbatch_command(jobs["train"], run, ROOT / "slurm", "u", {}, test_only=True)
    assert "--test-only" in test and not any("dependency" in word for word in test)
    assert parse_comment(comment("u", ("train", 3)), "u") == ("train", 3)
    assert parse_comment(comment("other", ("train", 3)), "u") is None


def test_impossible_nodes(tmp_path: Path) -> None:
    config = make_config(tmp_path, parallel={"processes": 6, "processes_per_node": 4})
    with pytest.raises(UsageError, match=r"processes = 6 is not a multiple of parallel.processes_per_node = 4"):
        plan_jobs(config, SITE, phases())


def test_every_example_can_be_read_and_every_script_is_short() -> None:
    examples = sorted((ROOT / "slurm" / "env").glob("*.example"))
    assert len(examples) >= 3
    for example in examples:
        site = read_site(example)
        assert site.options("all") and site.options("gpu") and site.tasks("captions") > 1
    for phase in phases_in("round"):
        assert (ROOT / "slurm" / phase.script_name).read_text().count("\n") <= 60


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("OPTIONS_ALL=--account=a --qos=b", "put the value into quotes"),
        ("OPTIONS_ALL='--account=a", "No closing quotation"),
        ("TASKS_SCORE=0", "number from 1 to"),
        ("TASKS_CAPTION=4", "nothing reads TASKS_CAPTION; did you mean TASKS_CAPTIONS"),
        ("export OPTIONS_train=--time=4", "nothing reads OPTIONS_train; did you mean OPTIONS_TRAIN"),
        ("OPTIONS_CAPTIONS='--mem=9G --array=0-3'", "OPTIONS_CAPTIONS: 'sophia submit' sets --array itself"),
        ("OPTIONS_ALL='--dependency afterok:7'", "sets --dependency itself"),
        ("OPTIONS_ALL=-o/tmp/log", "OPTIONS_ALL: 'sophia submit' sets -o"),
    ],
)
def test_env_files_that_a_shell_reads_otherwise(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "cluster.env"
    path.write_text(f"# a comment\n{line}\n")
    with pytest.raises(UsageError, match=f"cluster.env:2: .*{told}"):
        read_site(path)


def test_gpus_that_are_missing_or_broken() -> None:
    health.check_gpus("0, 0\n1, 0\n", 2)
    health.check_gpus("0, [N/A]\n", 1)  # no ECC on this card
    health.check_gpus(None, 8)  # no nvidia-smi here
    with pytest.raises(health.Unhealthy, match="1 GPUs instead of 2"):
        health.check_gpus("0, 0\n", 2)
    with pytest.raises(health.Unhealthy, match="errors on GPU 1"):
        health.check_gpus("0, 0\n1, 3\n", 2)


def test_a_filesystem_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    health.check_filesystem(tmp_path / "x", 10.0)
    never = threading.Event()
    monkeypatch.setattr(health.atomic, "write_text", lambda path, text: never.wait(20))
    with pytest.raises(health.Unhealthy, match=r"took more than 0\.1 s"):
        health.check_filesystem(tmp_path / "x", 0.1)
    never.set()


def test_a_used_up_quota_is_not_the_fault_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(health.atomic.os, "fsync", refuse)
    with pytest.raises(SophiaError, match=r"Disk quota exceeded \(the quota is used up: free some space") as told:
        health.check_filesystem(tmp_path / "x", 10.0)
    assert not isinstance(told.value, health.Unhealthy)  # which would leave the node out and try another one


def test_exclusion_is_bounded(tmp_path: Path) -> None:
    run, task = RunFolder(tmp_path), SlurmTask(job_id="7", node="n1")
    health.exclude(run, task, ["n1"], limit=2)
    health.exclude(run, task, ["n1", "n2"], limit=2)
    with pytest.raises(SophiaError, match=r"3 nodes of job 7 are unhealthy \(n1, n2, n3\)"):
        health.exclude(run, task, ["n3"], limit=2)
    assert health.unhealthy_nodes(run) == {"n1": ["7"], "n2": ["7"]}


def test_attempts_and_ports(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = SlurmTask.from_environment({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2"})
    second = SlurmTask.from_environment({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"})
    assert first.name == "10_2" and first.port != second.port
    end_attempt(run, begin_attempt(run, "train", 0, first), 76, "node n1: 7 GPUs instead of 8")
    begin_attempt(run, "train", 0, second)
    assert [(a.restart, a.outcome) for a in read_attempts(run)] == [(0, "unhealthy node"), (1, "no end seen")]


def test_time_left_of_work_units() -> None:
    def tried(job: str, began: float, ended: float | None) -> Attempt:
        return Attempt(phase="captions", round=0, job=job, restart=0, nodes="n", began=began, ended=ended)

    state = PhaseState(phase="captions", round=0, total=100, done=20)
    jobs = [QueuedJob(f"1_{i}", "RUNNING" if i < 2 else "PENDING", "", "", ("captions", 0)) for i in range(4)]
    tries = [tried("1_0", 0.0, None), tried("1_1", 50.0, None), tried("1_3", 0.0, 50.0), tried("9_0", 0.0, None)]
    assert seconds_left(state, jobs, tries, 100.0) == 80 * (200 / 20) / 2  # 10 task-seconds per unit, two tasks
    assert seconds_left(state, jobs[2:], tries, 100.0) is None  # nothing runs
    assert seconds_left(replace(state, done=0), jobs, tries, 100.0) is None


def test_inputs_that_are_missing_are_named(tmp_path: Path) -> None:
    config, run = make_config(tmp_path), RunFolder(tmp_path)
    for phase, before in (("captions", "questions"), ("train", "score"), ("export", "train")):
        with pytest.raises(SophiaError, match=f"{phase} of round 0 cannot start: {before} of round 0 is not finished"):
            check_inputs(phase_named(phase), Round(config, run, 0))


@pytest.mark.skipif(shutil.which("bash") is None, reason="NOT TESTED: needs bash (apt-get install bash)")
def test_scripts_are_valid_bash() -> None:
    scripts = sorted((ROOT / "slurm").glob("*.sbatch"))
    assert scripts
    for path in (*scripts, ROOT / "slurm" / "job.sh"):
        assert subprocess.run(["bash", "-n", str(path)]).returncode == 0, path

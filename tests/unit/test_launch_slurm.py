"""What job.sh, `sophia status` and `sophia cancel` do about jobs that go wrong: with false commands of Slurm's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sophia_mcore.config import load_config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.phases import PHASES, wanted_phases
from sophia_mcore.launch.slurm.commands import QueuedJob
from sophia_mcore.launch.slurm.jobs import Job, early_signal, sbatch_command
from sophia_mcore.launch.slurm.status import problems
from sophia_mcore.launch.slurm.submit import cancel, check_scripts, dry_run
from sophia_mcore.phase import PhaseState
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import run_uid
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.track.lineage import lineage_of
from tests.support.generate_world import make_config

ROOT = Path(__file__).resolve().parents[2]
TRAIN = (ROOT / "slurm" / "train.sbatch").read_text()
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="NOT TESTED: needs bash (apt-get install bash)")


def run_job(
    folder: Path, command: str, *, restarts: int = 0, lines: str = ""
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """job.sh with an attempt at ``command``, and what it asked of scontrol. ``lines``: of the env file."""
    run, snapshot, commands = folder / "run", folder / "code", folder / "bin"
    for made in (run, snapshot, commands):
        made.mkdir()
    (run / "config.toml").write_text("")
    (snapshot / "cluster.env").write_text(f"MAX_RESTARTS=2\n{lines}")
    asked = folder / "asked"
    (commands / "scontrol").write_text(f'#!/bin/sh\necho "$*" >> {asked}\necho node1\n')
    (commands / "sleep").write_text("#!/bin/sh\n")
    for path in commands.iterdir():
        path.chmod(0o755)
    script = f"set -- {run} 0 {snapshot}; source {ROOT / 'slurm' / 'job.sh'}; attempt sh -c '{command}'"
    environment = {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_RESTART_COUNT": str(restarts),
                   "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train-r0", "SLURM_JOB_NODELIST": "node1"}  # fmt: skip
    done = subprocess.run(["bash", "-c", script], env=environment, text=True, capture_output=True)
    lines_asked = asked.read_text().splitlines() if asked.exists() else []
    return done, [line for line in lines_asked if not line.startswith("show")]


@needs_bash
@pytest.mark.parametrize(("restarts", "code", "told"), [(2, 3, "ended with code 3"), (3, 1, "restarted 3 times")])
def test_a_job_is_not_restarted_for_ever(tmp_path: Path, restarts: int, code: int, told: str) -> None:
    done, asked = run_job(tmp_path, "exit 3", restarts=restarts)
    assert done.returncode == code and told in done.stdout + done.stderr
    assert asked == []


@needs_bash
@pytest.mark.parametrize("before", ["", "trap : USR1; /bin/sleep 0.5; kill -USR1 $PPID; /bin/sleep 0.5; "])
def test_work_that_was_put_down_is_requeued(tmp_path: Path, before: str) -> None:
    """Whoever sent the signal; and for a time ahead, which Slurm keeps, not for one that it makes two minutes of."""
    _, asked = run_job(tmp_path, f"{before}exit 75")
    assert asked == ["requeue 7", "update JobId=7 StartTime=now+15"]


@needs_bash
def test_an_env_file_that_ends_the_script(tmp_path: Path) -> None:
    done, _ = run_job(tmp_path, "exit 0", lines="exit 0\n")
    assert done.returncode == 1 and "cluster.env ended the script" in done.stderr


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ([], []),
        (["--time=00:05:00"], ["--signal=B:USR1@100"]),
        (["--time=2-0", "-t", "9:30"], ["--signal=B:USR1@190"]),  # the last word counts
        (["-t5"], ["--signal=B:USR1@100"]),
        (["--time=5", "--time=UNLIMITED"], []),
        (["--time=5", "--signal=B:USR1@60"], []),
    ],
)
def test_a_short_job_is_not_told_to_stop_when_it_starts(options: list[str], added: list[str]) -> None:
    assert early_signal(options, TRAIN) == added
    assert early_signal([], TRAIN.replace("24:00:00", "00:15:00")) == ["--signal=B:USR1@300"]


def test_a_percent_sign_in_the_path_of_the_run(tmp_path: Path) -> None:
    command = sbatch_command(Job(phase="train", round=0), RunFolder(tmp_path / "50%x"), ROOT / "slurm", "u", {})
    assert f"--output={tmp_path}/50%%x/slurm/logs/%x-%j.batch.log" in command
    assert str(tmp_path / "50%x") in command  # for the script


def test_a_script_that_is_missing(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "slurm" / "score.sbatch").unlink()
    with pytest.raises(SophiaError, match=r"slurm: no score\.sbatch there \(cluster\.scripts\)"):
        check_scripts(make_config(tmp_path, cluster={"scripts": tmp_path / "slurm"}))


def test_status_names_the_cause_not_its_echo(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    logs = tmp_path / "slurm" / "logs"
    logs.mkdir(parents=True)
    (logs / "captions-r0-4_1.batch.log").write_text("srun: error: node1: task 0: Exited with exit code 2\n")
    state = PhaseState(phase="captions", round=0)
    job = QueuedJob("4_1", "FAILED", "", "node1", ("captions", 0))
    assert "Exited with exit code 2" in problems(run, [state], [job], [])[0]  # better than nothing
    cause = "slurmstepd: error: execve(): /nowhere/python: No such file or directory"
    (logs / "captions-r0-4_1-0.log").write_text(f"{cause}\n")
    assert problems(run, [state], [job], [])[0] == f"captions of round 0: job 4_1 failed: {cause}"


def test_cancel_waits_for_no_submission_to_slip_through(tmp_path: Path) -> None:
    """Jobs that a `sophia submit` is about to submit would outlive a cancellation beside it."""
    run = RunFolder(tmp_path)
    run_uid(tmp_path)
    with (
        folder_lock(tmp_path / "slurm" / "lock"),
        pytest.raises(SophiaError, match=f"in use by process {os.getpid()} on"),
    ):
        cancel(run)


def test_lineage_says_how_an_export_is_proven(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    proof = {"source": {"folder": "step-00000006"}, "verified": False}
    run.round(0).model.mkdir(parents=True)
    (run.round(0).model / "conversion.json").write_text(json.dumps(proof))
    assert lineage_of(run, 0, PHASES)["export"]["proof"] == "digests of every tensor, not read back"


@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/*/run.toml")), ids=lambda path: path.parent.name)
def test_a_dry_run_needs_neither_an_env_file_nor_slurm(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    sets = [f"run.folder={tmp_path / 'run'}", f"cluster.scripts={ROOT / 'slurm'}"]
    config = load_config(example, sets=sets)
    found = dry_run(config)
    assert [job.phase for job in found.jobs if job.round == 0] == [phase.name for phase in wanted_phases(config)]
    assert len(found.commands) == len(found.jobs) and found.answers == {}
    missing, silent, *models = found.notes
    assert all("to download it: hf download " in note for note in models)
    assert missing.startswith("slurm/env/cluster.env is not there yet") and "no sbatch here" in silent
    assert not (tmp_path / "run").exists()
    named = load_config(example, sets=[*sets, "cluster.env_file=mine.env"])
    with pytest.raises(UsageError, match=r"mine\.env: no such env file"):
        dry_run(named)

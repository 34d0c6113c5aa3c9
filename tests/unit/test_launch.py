"""Phases as processes: progress arrives, the worker's own error line is what the user sees, nothing outlives us."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import pytest

from sophia_mcore.config import load_config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch import environments
from sophia_mcore.launch.local import claim_folder, run_phases
from sophia_mcore.launch.phases import expand, starting_at
from sophia_mcore.launch.process import run_worker
from sophia_mcore.launch.terminal import TerminalProgress
from sophia_mcore.records import Kept
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import write_shard

WORKER = """
import argparse, sys, time
from sophia_mcore.errors import SophiaError, UsageError, run_command
from sophia_mcore.progress import worker_progress
parser = argparse.ArgumentParser()
parser.add_argument("what")
parser.add_argument("--progress-fd", type=int)
options = parser.parse_args()
def work():
    progress = worker_progress(options.progress_fd)
    progress.start("things", 3)
    progress.advance(2)
    print("chatter on stdout")
    if options.what == "fail":
        raise SophiaError("no kept trajectory: 12 wrong")
    if options.what == "usage":
        raise UsageError("tensor = 3 does not divide 4 heads")
    if options.what == "bug":
        raise KeyError("surprise")
    if options.what == "sleep":
        time.sleep(60)
    if options.what == "die":
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    progress.advance(1)
sys.exit(run_command("worker", work))
"""


def start(tmp_path: Path, what: str) -> list[dict]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    events: list[dict] = []

    def follow(stream: IO[str]) -> None:
        events.extend(json.loads(line) for line in stream)

    root = str(Path(__file__).resolve().parents[2])
    run_worker(
        [sys.executable, str(script), what],
        log_file=tmp_path / "logs" / "w.log",
        environment={"PYTHONPATH": root},
        follow=follow,
    )
    return events


def test_progress_travels_and_output_goes_to_the_log(tmp_path: Path) -> None:
    events = start(tmp_path, "succeed")
    assert [e["event"] for e in events] == ["start", "advance", "advance"]
    assert "chatter on stdout" in (tmp_path / "logs" / "w.log").read_text()


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("fail", SophiaError, "no kept trajectory: 12 wrong"),
        ("usage", UsageError, "tensor = 3 does not divide 4 heads"),
        ("bug", SophiaError, "KeyError: 'surprise' (details: "),
        ("die", SophiaError, "was killed by signal 9"),
    ],
)
def test_the_workers_own_word_is_the_error(tmp_path: Path, what: str, kind: type, text: str) -> None:
    with pytest.raises(SophiaError) as caught:
        start(tmp_path, what)
    assert type(caught.value) is kind
    assert text in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_worker_before_this_process_goes(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    timer = threading.Timer(2.0, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, "sleep")
    assert signal.getsignal(number) is before
    timer.join()


def test_fp8_without_a_driver_is_refused_before_the_ranks_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "_NVIDIA", (str(tmp_path / "none"),))
    config = config_at(tmp_path, '[fp8]\nrecipe = "tensorwise"\n')
    round = Round(config, RunFolder(tmp_path), 0)
    with pytest.raises(UsageError, match="needs a CUDA device, which is not here"):
        environments.run_ranks(round, TerminalProgress(), "train", "sophia_mcore.train.worker", [])


def test_interpreter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SophiaError, match="cannot be started"):
        run_worker(["/nowhere/python"], log_file=tmp_path / "l", environment={}, follow=lambda stream: None)


def test_worker_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    parent = (
        "from pathlib import Path; from sophia_mcore.launch.process import run_worker; import sys;"
        f"run_worker([sys.executable, {str(tmp_path / 'worker.py')!r}, 'sleep'],"
        f"log_file=Path({str(tmp_path / 'l')!r}), environment={{}}, follow=lambda s: [None for _ in s])"
    )
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen([sys.executable, "-c", parent], env={**os.environ, "PYTHONPATH": root})
    children: list[int] = []
    deadline = time.monotonic() + 20
    while not children and time.monotonic() < deadline:
        listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        children = [int(pid) for pid in listed]
        time.sleep(0.05)
    assert children
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in children)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_phase_names() -> None:
    assert expand(["generate"]) == ["questions", "captions", "reasoning"]
    assert expand(["train", "score"]) == ["score", "train"]
    assert starting_at("export") == ["export", "evaluate", "report"]
    with pytest.raises(UsageError, match="did you mean 'train'"):
        expand(["trian"])


def config_at(folder: Path, extra: str = ""):
    path = folder.parent / "run.toml"
    path.write_text(
        f'[run]\nname = "x"\nfolder = "{folder}"\n[models]\npolicy = "p"\nreasoner = "r"\n'
        f'[[data.questions]]\nkind = "jsonl"\npath = "q.jsonl"\n{extra}'
    )
    return load_config(path)


def test_a_folder_keeps_its_settings(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    claim_folder(config_at(folder.path), folder)
    claim_folder(config_at(folder.path, "[reward]\nalpha = 0.6\n"), folder)  # nothing has been kept by it yet
    write_shard(folder.round(0).kept_file, [], Kept)
    claim_folder(config_at(folder.path, "[score]\nworkers = 7\n[reward]\nalpha = 0.6\n"), folder)  # no other result
    with pytest.raises(UsageError, match=r"reward.alpha 0.6 -> 0.5.*score depends.*--new-settings"):
        claim_folder(config_at(folder.path, "[reward]\nalpha = 0.5\n"), folder)
    claim_folder(config_at(folder.path, "[reward]\nalpha = 0.5\n"), folder, new_settings=True)
    assert load_config(folder.config_file).reward.alpha == 0.5


def test_second_run_in_one_folder_is_refused(tmp_path: Path) -> None:
    from sophia_mcore.store.lock import folder_lock

    config = config_at(tmp_path / "run")
    held = (
        "import time; from pathlib import Path; from sophia_mcore.store.lock import folder_lock\n"
        f"with folder_lock(Path({str(tmp_path / 'run' / 'lock')!r})): print('held', flush=True); time.sleep(60)"
    )
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    holder = subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE, env=environment)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(SophiaError, match=f"process {holder.pid}"):
            run_phases(config, ["report"], [0])
    finally:
        holder.kill()
        holder.wait()
    with folder_lock(tmp_path / "run" / "lock"):
        pass  # a killed holder leaves nothing behind

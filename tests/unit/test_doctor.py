"""The doctor never crashes, names what is missing with its cost, and refuses a configuration with the reason."""

from __future__ import annotations

import io
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.doctor import configuration as run
from sophia_mcore.doctor import environments, machine, rows, storage
from sophia_mcore.doctor.command import doctor, examine
from sophia_mcore.doctor.rows import Row
from sophia_mcore.errors import SophiaError
from sophia_mcore.launch.local import run_phases
from tests.support import configs, plan_models, tiny_models

ROOT = Path(__file__).resolve().parents[2]


def by_name(found: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in found}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(
        '[run]\nname = "x"\nfolder = "runs/x"\n[models]\npolicy = "policy"\nreasoner = "reasoner"\n'
        '[[data.questions]]\nkind = "jsonl"\npath = "questions.jsonl"\n'
        '[fp8]\nrecipe = "tensorwise"\n[track]\ntracking_uri = "http://me:hunter2@127.0.0.1:9"\n'
    )
    return load_config(tmp_path / "run.toml")


def test_a_bare_machine_is_described_without_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi, no Slurm, no munge
    monkeypatch.chdir(tmp_path)  # and no environment
    found = by_name(examine(None))
    for name in ("GPUs", "Slurm", "munge", "rollout environment", "vLLM", "ModelOpt"):
        assert found[name].state == "missing" and found[name].cost and found[name].remedy, name
    assert found["atomic rename"].state == found["hard links"].state == found["file locks"].state == "ok"
    doctor(None, Console(file=io.StringIO()))  # without a configuration nothing is refused
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_cannot_run_is_refused_with_all_reasons(config: Config) -> None:
    output = io.StringIO()
    with pytest.raises(SophiaError) as caught:
        doctor(config, Console(file=output, width=300))
    for words in ("models.policy: policy: no such model directory", "questions.jsonl: no such file", "fp8.recipe"):
        assert words in str(caught.value)
    assert "MLflow" not in str(caught.value)  # a server that is down stops nothing
    assert "hunter2" not in output.getvalue()
    found = by_name(examine(config))
    assert found["MLflow server"].state == "warning" and "metrics.jsonl" in found["MLflow server"].cost


def test_gpus_are_counted_against_the_processes(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"nvidia-smi": "NVIDIA H100 80GB HBM3, 81559 MiB, 550.54\n" * 2}

    def ask(*command: str) -> str | None:
        return "GPU0 X NV18\nGPU1 NV18 X" if "topo" in command else answers.get(command[0])

    monkeypatch.setattr(machine, "ask", ask)
    wide = config.model_copy(update={"parallel": config.parallel.model_copy(update={"tensor": 4})})
    assert by_name(examine(wide))["processes"].state == "stops"
    found = by_name(examine(config))
    assert found["processes"].state == "ok" and found["NVLink"].found == "NV18"
    assert found["GPUs"].found.startswith("2 x NVIDIA H100")


def test_what_is_installed_but_fails_is_not_called_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("sinfo", "munge"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert machine.slurm().found == "sinfo is here, but fails" and machine.slurm().state == "missing"
    assert machine.munge().remedy == "start munged"


def test_far_more_processes_than_cores_are_warned_of(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.os, "sched_getaffinity", lambda _: {0, 1})
    states = {}
    for ranks in (8, 64):
        wide = config.model_copy(update={"parallel": config.parallel.model_copy(update={"processes": ranks})})
        states[ranks] = {row.name: row.state for row in run.devices(wide)}["processes"]
    assert states == {8: "ok", 64: "warning"}


def test_a_model_too_large_for_the_gpus_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(plan_models.write_config(tmp_path, "internvl3-8b"))
    states = {}
    for mib in (40_000, 140_000, 1_000_000):
        monkeypatch.setattr(machine, "gpu_names", lambda size=mib: [f"NVIDIA X, {size} MiB, 550.54"])
        (row,) = run.gpu_memory(config, 1)
        states[mib] = row.state
    assert states == {40_000: "stops", 140_000: "warning", 1_000_000: "ok"}


def test_a_filesystem_without_hard_links_or_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(storage.os, "link", refused)
    monkeypatch.setattr(storage.fcntl, "flock", lambda *_: None)  # locks that lock nothing
    found = by_name(storage.checks(tmp_path))
    assert found["hard links"].state == found["file locks"].state == "stops"


@pytest.mark.parametrize("folder", ["taken", "taken/below/run", "dangling"])
def test_a_file_in_the_place_of_the_run_folder_is_refused(config: Config, tmp_path: Path, folder: str) -> None:
    (tmp_path / "taken").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    there = config.model_copy(update={"run": config.run.model_copy(update={"folder": tmp_path / folder})})
    with pytest.raises(SophiaError, match=f"{folder.partition('/')[0]} is a file, not a folder"):
        doctor(there, Console(file=io.StringIO()))
    with pytest.raises(SophiaError, match=r"is a file, not a folder|is in the way"):
        run_phases(there, ["questions"], [0])


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("jsonl", "dear diary,\n", "no line of the first 1 is a JSON object"),
        ("jsonl", '{"question": "2+2", "answer": "4", "image": null}\n', "row 0: no image"),
        ("csv", "dear diary,\n", "column"),
        ("parquet", "dear diary,\n", "damaged or unreadable"),
        ("datasets", "dear diary,\n", "takes a folder"),
        ("jsonl", '{"question": "2+2", "answer": "4", "image": "a.png"}\n', None),
    ],
)
def test_a_question_source_is_read(tmp_path: Path, kind: str, text: str, words: str | None) -> None:
    (tmp_path / "questions.txt").write_text(text)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    config = load_config(plan_models.write_config(tmp_path, "internvl3-8b"))
    source = config.data.questions[0].model_copy(update={"kind": kind, "path": str(tmp_path / "questions.txt")})
    data = config.data.model_copy(update={"questions": [source]})
    (row,) = run.sources(config.model_copy(update={"data": data}))
    assert row.state == ("stops" if words else "ok") and (words or "questions.txt") in row.found, row


@pytest.mark.parametrize(
    ("start", "state", "words"),
    [
        ("base", None, ""),
        ("round-0", "missing", "is not there yet"),
        ("nowhere", "stops", "no such model directory"),
        ("empty", "stops", "config.json"),
        ("there", "ok", "there"),
    ],
)
def test_the_model_that_the_stage_begins_with(tmp_path: Path, start: str, state: str | None, words: str) -> None:
    (tmp_path / "empty").mkdir()
    tiny_models.save_internvl(tmp_path / "there", seed=1)
    path = start if start in ("base", "round-0") else str(tmp_path / start)
    config = configs.make_config(tmp_path / "run", "policy", "reasoner", rl={"max_tokens": 64, "start": path})
    found = run.start(config)
    assert [row.state for row in found] == ([state] if state else [])
    assert not found or (found[0].name == "rl.start" and words in found[0].found)


@pytest.mark.parametrize(
    ("rl", "free", "state", "words"),
    [
        ({}, 0, None, ""),
        ({"versions": "memory"}, 3 << 30, "ok", "about 3.0 GiB for 3 versions in /dev/shm, 3.0 GiB free"),
        ({"versions": "memory"}, 2 << 30, "warning", "the on-policy stage does not begin"),
        ({"versions": "memory", "rollout_nodes": 1}, 2 << 30, "ok", "about 2.0 GiB for 2 versions"),
        ({"versions": "memory", "rollout_nodes": 1}, 1 << 30, "warning", "engines load from the run folder on such a"),
    ],
)
def test_memory_for_the_versions_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rl: dict[str, Any], free: int, state: str | None, words: str
) -> None:
    (tmp_path / "policy").mkdir()
    with open(tmp_path / "policy" / "model.safetensors", "wb") as file:
        file.truncate(1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    rl = {"max_tokens": 64, "placement": "separate", **rl}
    found = run.versions_in_memory(configs.make_config(tmp_path / "run", tmp_path / "policy", "reasoner", rl=rl))
    assert [row.state for row in found] == ([state] if state else [])
    assert all(words in row.found + row.cost for row in found)
    monkeypatch.setattr(run, "MEMORY", tmp_path / "nowhere")
    found = run.versions_in_memory(configs.make_config(tmp_path / "run", tmp_path / "policy", "reasoner", rl=rl))
    assert not found or (found[0].state == "warning" and "nowhere that can be written" in found[0].found)


class Answering(BaseHTTPRequestHandler):
    """A server that says the same to everybody."""

    said = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.said)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (b"<html>welcome</html>", "warning"),
        (b"{}", "warning"),
        (b'{"experiments": [{"experiment_id": "0", "name": "Default"}]}', "ok"),
    ],
)
def test_a_server_that_is_not_mlflow_is_told_from_one_that_is(config: Config, said: bytes, state: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Says", (Answering,), {"said": said})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        track = config.track.model_copy(update={"tracking_uri": f"http://me:hunter2@127.0.0.1:{server.server_port}"})
        row = run.tracking(config.model_copy(update={"track": track}))
        server.shutdown()
    assert row.state == state and "hunter2" not in row.found, row
    assert state == "ok" or "answers, but not as MLflow" in row.found


def test_versions_that_do_not_fit_are_named(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, version, requires in (("alpha", "1.0", "beta>=2"), ("beta", "1.5", ""), ("pyarrow", "24.0.0", "")):
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        wants = f"Requires-Dist: {requires}\n" if requires else ""
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{wants}")
    assert environments.site_of(tmp_path / "bin" / "python") == site
    (row,) = environments.requirements("trainer", site)
    assert "alpha wants beta>=2, it is 1.5" in row.found
    found = environments.packages(site)
    other = environments.agreement({"trainer": found, "rollout": {"pyarrow": "25.0.0"}})
    assert other.state == "warning" and "pyarrow 24.0.0 (trainer), 25.0.0 (rollout)" in other.found


def test_a_check_that_fails_unforeseen_becomes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Row]:
        raise RuntimeError("strange machine")

    monkeypatch.setattr(machine, "checks", broken)
    assert by_name(examine(None))["machine"].found == "RuntimeError: strange machine"


def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_PATIENCE_SECONDS", 0.2)
    assert rows.ask("sleep", "60") is None
    assert rows.ask("no-such-command-here") is None


def test_the_command_refuses_flags_without_a_configuration_and_a_folder(tmp_path: Path) -> None:
    from tests.unit.test_cli import assert_failed, sophia

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    assert_failed(sophia("doctor", "--set", "run.name=x", folder=tmp_path), 2, "name it too")
    assert_failed(sophia("doctor", "run", folder=tmp_path), 2, "did you mean run/config.toml?")

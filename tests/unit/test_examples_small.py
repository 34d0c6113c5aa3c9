"""The example for one 24 GB GPU on a fresh clone: check, plan and doctor need no download, and the layout fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sophia_mcore.cli import app

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "internvl3_1b"


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model of the hub is here, and the hub cannot be reached."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["run", "endpoint"])
def test_check_is_content(name: str) -> None:
    done = CliRunner().invoke(app, ["check", str(FOLDER / f"{name}.toml")], catch_exceptions=False)
    assert done.exit_code == 0 and f"# ok: {FOLDER / f'{name}.toml'}" in done.output


@pytest.mark.parametrize("name", ["run", "endpoint"])
def test_the_plan_fits_one_gpu_of_24_gb(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    command = ["plan", str(FOLDER / f"{name}.toml"), "--gpus", "1", "--gpu", "rtx4090"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (own,) = [line for line in done.output.splitlines() if line.strip().startswith("the file's:")]
    assert "DP1 recompute full" in own and "does not fit" not in own


def test_the_doctor_names_what_to_fetch() -> None:
    done = CliRunner().invoke(app, ["doctor", str(FOLDER / "run.toml")])
    said = f"{done.output} {done.exception}"
    assert "hf download OpenGVLab/InternVL3-1B-hf" in said and "hf download Qwen/Qwen2.5-7B-Instruct" in said

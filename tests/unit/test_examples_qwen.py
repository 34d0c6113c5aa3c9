"""Qwen's examples from a fresh folder: nothing is downloaded, and check, plan and a dry submission say what they do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sophia_mcore.cli import app

ROOT = Path(__file__).resolve().parents[2]
# file -> GPUs, its layout as the planner names it, jobs
EXAMPLES = {
    "qwen2_5_vl_7b/run": (8, "TP4 DP2", ["train", "export", "evaluate"]),
    "qwen3_vl_8b/run": (8, "TP4 DP2", ["train", "export", "evaluate"]),
    "qwen2_5_vl_32b/run": (64, "TP8 PP2 DP4", ["fp8-check", "train", "export", "evaluate"]),
    "qwen2_5_vl_7b/rethinker_1": (8, "TP4 DP2", ["rl-select", "rl", "rl-evaluate"]),
    "qwen2_5_vl_7b/rethinker_2": (8, "TP4 DP2", ["rl-select", "rl", "rl-evaluate"]),
}


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the examples and the scripts alone; no hub can be reached."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples", ignore=shutil.ignore_patterns("base"))
    shutil.copytree(ROOT / "slurm", "slurm")


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_fresh_folder_is_enough(name: str) -> None:
    gpus, layout, phases = EXAMPLES[name]
    file, stage = f"examples/{name}.toml", "rethinker" in name
    checked = CliRunner().invoke(app, ["check", file], catch_exceptions=False)
    assert checked.exit_code == 0 and f"# ok: {file}" in checked.output.splitlines()[-1]
    planned = CliRunner().invoke(app, ["plan", file, "--gpus", str(gpus)], catch_exceptions=False)
    own = [line for line in planned.output.splitlines() if line.strip().startswith("the file's:")]
    assert planned.exit_code == 0 and layout in own[0] and "does not work here" not in planned.output
    assert "images of 608 tokens, at most 1,280" in planned.output, "max_pixels of the file"
    if stage:
        assert "8 shared" in own[1] and "is not planned" not in planned.output
    jobs = CliRunner().invoke(app, ["submit", file, "--dry-run", *(["--rl"] if stage else [])], catch_exceptions=False)
    assert jobs.exit_code == 0 and not Path("runs").exists()
    for phase in ["questions", *phases, "report"]:
        assert f"--job-name={phase}-r0" in jobs.output

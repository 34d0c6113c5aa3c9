"""The measuring scripts: on a GPU a short run gives finite numbers; without one they say so in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import check
from tests.gpu.gpu_world import CUDA, needs_te

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}"}


@pytest.mark.skipif(CUDA, reason="a CUDA device is here")
@pytest.mark.parametrize("script", ["blocks.py", "check.py", "digits.py", "logprob_peers.py"])
def test_without_a_gpu_one_line_says_so(script: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(HERE / script), str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: no CUDA device")
    assert not (tmp_path / "out.json").exists()


@needs_te
def test_blocks_measure_something(tmp_path: Path) -> None:
    small = ["--layers=1", "--loss-steps=20", "--lengths", "4096", "--recipes", "none", "tensorwise"]
    command = [sys.executable, str(HERE / "blocks.py"), str(tmp_path / "out.json"), *small, "--tower-tiles", "2"]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    found = json.loads((tmp_path / "out.json").read_text())
    assert all(part["tflops"] > 1 for part in found["steps"].values())
    assert found["losses"]["none"]["losses"][-1] < found["losses"]["none"]["losses"][0]
    assert abs(found["losses"]["tensorwise"]["loss_gap"]) < 0.05
    assert found["tower"]["2"]["tiles_per_second"] > 0


def test_the_check_s_page_names_what_is_red_and_what_to_do(tmp_path: Path) -> None:
    steps = {"none 16384": {"tflops": 500.0}, "tensorwise 16384": {"tflops": 800.0}}
    good = {"steps": steps, "losses": {"none": {}, "tensorwise": {"loss_gap": 0.001}}}
    bad = {"steps": steps, "losses": {"none": {}, "tensorwise": {"loss_gap": 0.02}}}
    assert check.blocks(good)[0] and not check.blocks(bad)[0]
    assert not check.blocks({"steps": {"none": {"error": "out of memory"}}, "losses": {}})[0]
    failing = check.Part("x", "y", ("-c", "raise SystemExit('it broke')"), 60, check.tests_passed, "mend it")
    ok, text, seconds = check.run(failing, tmp_path)
    assert not ok and "it broke" in text
    written = check.page("H100", "torch 2", [(failing, ok, text, seconds), (check.PARTS[1], *check.blocks(good), 3.0)])
    assert "| x | y | **red** | it broke" in written and "- x: mend it" in written and "| good |" in written
    assert sum(part.seconds for part in check.PARTS) <= 13 * 60, "limits, of which few are reached"

"""The measuring scripts: on a GPU a short run gives finite numbers; without one they say so in one line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sophia_mcore.errors import UsageError
from tests.gpu import blocks, check, gpu_world
from tests.gpu.gpu_world import CUDA, needs_te
from tests.support import pretended_cuda

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}"}


@pytest.mark.skipif(CUDA, reason="a CUDA device is here; runs on machines without one")
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


STEPS = {"none 16384": {"tflops": 500.0, "tokens_per_second_and_layer": 9e4}, "tensorwise 16384": {"tflops": 800.0}}
FP8 = {"steps": STEPS, "losses": {"none": {}, "tensorwise": {"loss_gap": 0.001}}}
SLICE = {"steps": {"none 16384": STEPS["none 16384"]}, "losses": {}, "tower": {"8": {"tiles_per_second": 40.0}}}
KERNELS = {"hidden": {"3584": {"floor": {}, "nll 1024": {"gradient_error": 4e-3}, "liger": {"error": "not installed"}}}}
BROKEN = {"error": "OutOfMemoryError: CUDA out of memory"}
RESULTS: dict[str, tuple[Any, Any, bool, str]] = {  # judge, results, good, what the row says
    "fp8": (check.blocks, FP8, True, "tensorwise: loss +0.10%"),
    "fp8 apart": (check.blocks, {**FP8, "losses": {"none": {}, "tensorwise": {"loss_gap": 0.02}}}, False, "+2.00%"),
    "fp8 is nan": (check.blocks, {**FP8, "losses": {"none": {}, "delayed": {"loss_gap": math.nan}}}, False, "nan"),
    "fp8 not compared": (check.blocks, {**FP8, "losses": {"none": {}, "tensorwise": {}}}, False, "500 TFLOP/s"),
    "fp8 broken": (check.blocks, {**FP8, "losses": {"none": {}, "tensorwise": BROKEN}}, False, "out of memory"),
    "no speed": (check.blocks, {**FP8, "steps": {"none 16384": BROKEN}}, False, "out of memory"),
    "kernels": (check.kernels, KERNELS, True, "gradient error 4.0e-03"),
    "wrong gradient": (check.kernels, {"hidden": {"1": {"nll 1024": {"gradient_error": 0.3}}}}, False, "3.0e-01"),
    "no gradient": (check.kernels, {"hidden": {"1": {"nll 1024": BROKEN}}}, False, "out of memory"),
    "gradient nan": (check.kernels, {"hidden": {"1": {"nll 1": {"gradient_error": math.nan}}}}, False, "nan"),
    "slice": (check.slice_of_38b, SLICE, True, "90,000 tokens/s and layer; 8 tiles: 40 tiles/s"),
    "slice without tower": (check.slice_of_38b, {**SLICE, "tower": {"8": BROKEN}}, False, "out of memory"),
    "digits": (check.digits, {"train": {"logprob_before": -6.0, "logprob_after": -0.5}}, True, "-6.000 -> -0.500"),
    "digits worse": (check.digits, {"train": {"logprob_before": -1.0, "logprob_after": -2.0}}, False, "-2.000"),
    "tests": (check.pytest_passed, {"lines": ["....", "9 passed in 3.00s"]}, True, "9 passed"),
    "tests failed": (check.pytest_passed, {"lines": ["FAILED a.py::t - x", "1 failed, 8 passed"]}, False, "a.py::t"),
    "tests skipped": (
        check.pytest_passed, {"lines": ["SKIPPED [8] a.py:1: no CUDA device with Transf", "1 passed, 8 skipped"]},
        False, "SKIPPED [8]",
    ),
    "no tests": (check.pytest_passed, {"lines": ["no tests ran in 0.01s"]}, False, "no tests ran"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_judged(name: str) -> None:
    judge, results, good, said = RESULTS[name]
    found, text = judge(results)
    assert found is good and said in text


def test_the_parts_follow_the_page_and_have_remedies() -> None:
    """The order of docs/gpu.md, from small to large; a red row is never without what to do."""
    assert [part.name[0] for part in check.PARTS] == ["a", "b", "c", "d", "e"]
    assert all(part.remedy and part.against for part in check.PARTS)
    files = [Path(given) for part in check.PARTS for given in part.arguments if given.endswith(".py")]
    assert len(files) == 6 and all((HERE.parents[1] / file).is_file() for file in files)
    assert sum(part.seconds for part in check.PARTS) <= 13 * 60, "limits, of which few are reached"
    assert blocks.update is gpu_world.update, "FP8 weights are renewed at every update (tests/cuda_path/test_fp8.py)"


def part(code: str, seconds: int = 60, judge: check.Judge = check.digits) -> check.Part:
    return check.Part("x. " + code[:8], "y", ("-c", code, "OUT"), seconds, judge, "mend it")


WRITE = "import sys, json; json.dump({'train': {'logprob_before': -2, 'logprob_after': -1}}, open(sys.argv[1], 'w'))"


@pytest.mark.parametrize(
    ("code", "seconds", "good", "said"),
    [
        (WRITE, 60, True, "-2.000 -> -1.000"),
        (WRITE + "; raise SystemExit('it broke')", 60, False, "it broke; log-prob"),
        ("raise SystemExit('it broke')", 60, False, "it broke; results are incomplete ('train')"),
        ("import time; time.sleep(99)", 1, False, "not finished in 1 s"),
        ("import subprocess; subprocess.run(['sleep', '99'])", 1, False, "not finished in 1 s"),
        ("import sys; open(sys.argv[1], 'w').write('{')", 60, False, "results are incomplete"),
    ],
)
def test_a_part_runs_alone_and_ends(tmp_path: Path, code: str, seconds: int, good: bool, said: str) -> None:
    found, text, _ = check.run(part(code, seconds), tmp_path)
    assert found is good and said in text


@pytest.mark.parametrize("red", [False, True])
def test_the_page_has_a_row_for_each_part_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, red: bool
) -> None:
    page = tmp_path / "docs" / "gpu.md"
    monkeypatch.setattr(check, "PARTS", (part(WRITE), *([part("raise SystemExit('a | b')")] if red else [])))
    monkeypatch.setattr(check, "check_parts", lambda: None)
    monkeypatch.setattr(sys, "argv", ["check.py", str(page)])
    with pretended_cuda.pretended(), pytest.raises(SystemExit) as ended:
        check.main()
    assert ended.value.code == int(red)
    text = page.read_text()
    assert (
        "H100" in text
        and torch.__version__ in text
        and "| x. import s | y | good | log-prob -2.000 -> -1.000 |" in text
    )
    assert ("| x. raise Sy | y | **red** | a / b; results are incomplete" in text) is red
    assert ("- x. raise Sy: mend it" in text) is red


def test_half_an_installation_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> None:
        raise UsageError("transformer_engine is installed, but cannot be imported (no onnxscript): install it")

    monkeypatch.setattr(check, "check_parts", broken)
    monkeypatch.setattr(sys, "argv", ["check.py", str(tmp_path / "gpu.md")])
    with pretended_cuda.pretended(), pytest.raises(SystemExit, match="error: transformer_engine is installed"):
        check.main()
    assert not (tmp_path / "gpu.md").exists()

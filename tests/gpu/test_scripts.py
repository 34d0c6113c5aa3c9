"""The measuring scripts: on a GPU a short run gives finite numbers; without one they say so in one line."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sophia_mcore.errors import UsageError
from tests.gpu import blocks, check, digits, gpu_world, logprob_peers
from tests.gpu.gpu_world import CUDA, needs_te
from tests.support import pretended_cuda
from tests.support.tools import load_tool

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


STEPS: dict[str, dict[str, Any]] = {
    "none 16384": {
        "tflops": 500.0,
        "tokens_per_second_and_layer": 9e4,
        "mfu_of_bf16_peak": 0.51,
        "peak_memory_gb": 30.0,
    },
    "tensorwise 16384": {"tflops": 800.0, "losses": [2.0, 1.0]},
}
BF16 = {"losses": [2.0, 1.0]}
FP8: dict[str, Any] = {"steps": STEPS, "losses": {"none": BF16, "tensorwise": BF16 | {"loss_gap": 0.001}}}
SLICE = {"steps": {"none 16384": STEPS["none 16384"]}, "losses": {}, "tower": {"8": {"tiles_per_second": 40.0}}}
WIDTH = {
    "floor": {"seconds": 0.01},
    "nll 1024": {"gradient_error": 4e-3, "seconds": 0.02},
    "ratio 1024": {"seconds": 0.02},
}
KERNELS = {"hidden": {"3584": WIDTH}}
BROKEN = {"error": "OutOfMemoryError: CUDA out of memory"}


def apart(part: dict[str, Any]) -> dict[str, Any]:
    """Results of FP8 with another part for its losses."""
    return {**FP8, "losses": {"none": BF16, "tensorwise": BF16 | part}}


def speed(**changes: float | None) -> dict[str, Any]:
    """Figures of bf16's step with changes; None takes one away."""
    part = {**STEPS["none 16384"], **changes}
    return {"none 16384": {name: value for name, value in part.items() if value is not None}}


def gradient(error: float) -> dict[str, Any]:
    """Results of the kernels with this error of the gradient."""
    return {"hidden": {"1": {"nll 1024": {"gradient_error": error, "seconds": 1.0}}}}


def learned(before: float, after: float, base: float = 0.2, tuned: float = 0.8) -> dict[str, Any]:
    """Results of the digits example."""
    evaluation = {"base": {"pass_at_1": base}, "round-0": {"pass_at_1": tuned}}
    return {"train": {"logprob_before": before, "logprob_after": after}, "evaluation": evaluation}


RESULTS: dict[str, tuple[Any, Any, bool, str]] = {  # judge, results, good, what the row says
    "fp8": (check.blocks, FP8, True, "tensorwise: loss +0.10%"),
    "fp8 apart": (check.blocks, apart({"loss_gap": 0.02}), False, "+2.00%"),
    "fp8 is nan": (check.blocks, apart({"loss_gap": math.nan}), False, "nan"),
    "fp8 not compared": (check.blocks, apart({}), False, "tensorwise: not compared with bf16"),
    "fp8 broken": (check.blocks, {**FP8, "losses": {"none": BF16, "tensorwise": BROKEN}}, False, "out of memory"),
    "fp8 without speed": (check.blocks, {**FP8, "steps": speed()}, False, "tensorwise: no speed"),
    "fp8 shows": (check.blocks, FP8, True, "none 16384: 500 TFLOP/s (51% of bf16's peak), 30.0 GB"),
    "bf16 loss is nan": (
        check.blocks, {**FP8, "losses": {**FP8["losses"], "none": {"losses": [2.0, math.nan]}}}, False,
        "none: a loss is not a number",
    ),
    "step's loss is inf": (
        check.blocks, {**FP8, "steps": {**STEPS, "none 16384": STEPS["none 16384"] | {"losses": [math.inf]}}}, False,
        "none 16384: a loss is not a number",
    ),
    "no losses": (check.blocks, apart({"losses": [], "loss_gap": 0.0}), False, "tensorwise: no losses"),
    "tflops 0": (check.blocks, {**FP8, "steps": {**STEPS, **speed(tflops=0.0)}}, False, "none 16384: no tflops"),
    "tflops missing": (check.blocks, {**FP8, "steps": {**STEPS, **speed(tflops=None)}}, False, "none 16384: no tflops"),
    "slice tflops < 0": (
        check.slice_of_38b, {**SLICE, "steps": {**speed(tflops=-1.0), "x": STEPS["none 16384"]}}, False,
        "none 16384: no tflops",
    ),
    "peer broken": (check.kernels, {"hidden": {"1": {**WIDTH, "te": BROKEN}}}, False, "te: OutOfMemoryError"),
    "ratio broken": (check.kernels, {"hidden": {"1": {**WIDTH, "ratio 1024": BROKEN}}}, False, "ratio 1024: OutOf"),
    "kernel without time": (check.kernels, {"hidden": {"1": {**WIDTH, "floor": {}}}}, False, "floor: no seconds"),
    "kernels show time": (check.kernels, KERNELS, True, "nll 1024: 20.0 ms"),
    "no speed": (check.blocks, {**FP8, "steps": {"none 16384": BROKEN}}, False, "out of memory"),
    "kernels": (check.kernels, KERNELS, True, "gradient error 4.0e-03"),
    "wrong gradient": (check.kernels, gradient(0.3), False, "3.0e-01"),
    "no gradient": (check.kernels, {"hidden": {"1": {"nll 1024": BROKEN}}}, False, "out of memory"),
    "gradient nan": (check.kernels, gradient(math.nan), False, "nan"),
    "slice": (check.slice_of_38b, SLICE, True, "90,000 tokens/s and layer; 8 tiles: 40 tiles/s"),
    "slice without tower": (check.slice_of_38b, {**SLICE, "tower": {"8": BROKEN}}, False, "out of memory"),
    "digits": (check.digits, learned(-6.0, -0.5), True, "-6.000 -> -0.500"),
    "digits worse": (check.digits, learned(-1.0, -2.0), False, "-2.000"),
    "accuracy fell": (check.digits, learned(-6.0, -0.5, 0.3, 0.2), False, "accuracy 30.0% -> 20.0%"),
    "tests": (check.pytest_passed, {"lines": ["....", "9 passed in 3.00s"]}, True, "9 passed"),
    "tests failed": (check.pytest_passed, {"lines": ["FAILED a.py::t - x", "1 failed, 8 passed"]}, False, "a.py::t"),
    "tests skipped": (
        check.pytest_passed, {"lines": ["SKIPPED [8] a.py:1: no CUDA device with Transf", "1 passed, 8 skipped"]},
        False, "SKIPPED [8]",
    ),
    "any skip": (
        check.pytest_passed, {"lines": ["SKIPPED [1] a.py:1: no packed attention in fp32", "8 passed, 1 skipped"]},
        False, "SKIPPED [1]",
    ),
    "a skip that is only counted": (check.pytest_passed, {"lines": ["8 passed, 1 skipped in 2s"]}, False, "1 skipped"),
    "a worst error": (
        check.pytest_passed,
        {"lines": ["worst error, bfloat16: 3.0e-03 (at most 4e-02)", "ERROR    a log's line",
                   "=== short test summary info ===", "PASSED a.py::t", "9 passed in 3.00s"]},
        True, "worst error, bfloat16: 3.0e-03",
    ),
    "no error printed": (check.pytest_passed, {"lines": ["9 passed in 3.00s"]}, True, "run it with -rA"),
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


WRITE = f"import sys, json; json.dump({learned(-2, -1)}, open(sys.argv[1], 'w'))"


@pytest.mark.parametrize(
    ("code", "seconds", "good", "said"),
    [
        (WRITE, 60, True, "-2.000 -> -1.000"),
        (WRITE + "; raise SystemExit('it broke')", 60, False, "it broke; log-prob"),
        ("raise SystemExit('it broke')", 60, False, "it broke; results are incomplete ('train')"),
        ("import os; os.kill(os.getpid(), 11)", 60, False, "ended by signal 11"),
        ("import time; time.sleep(99)", 1, False, "not finished in 1 s"),
        ("import subprocess; subprocess.run(['sleep', '99'])", 1, False, "not finished in 1 s"),
        ("import sys; open(sys.argv[1], 'w').write('{')", 60, False, "results are incomplete"),
    ],
)
def test_a_part_runs_alone_and_ends(tmp_path: Path, code: str, seconds: int, good: bool, said: str) -> None:
    found, text, _ = check.run(part(code, seconds), tmp_path)
    assert found is good and said in text


def test_ctrl_c_ends_the_part_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in a session of its own, which the terminal's signal does not reach: it would keep the GPU."""
    started: list[subprocess.Popen[str]] = []

    class Interrupted(subprocess.Popen[str]):
        def communicate(self, *_: Any, **__: Any) -> Any:
            started.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(check.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        check.run(part("import time; time.sleep(99)"), tmp_path)
    assert started[0].returncode == -signal.SIGKILL


def test_without_pytest_the_check_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pytest.py").write_text("raise ModuleNotFoundError(\"No module named 'pytest'\", name='pytest')")
    path = f"{tmp_path}{os.pathsep}{HERE.parents[1]}"
    command = [sys.executable, "-W", "ignore", str(HERE / "check.py"), str(tmp_path / "page.md")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 1 and done.stderr.startswith("error: No module named 'pytest'; docs/gpu.md")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("red", [False, True])
def test_the_page_has_a_row_for_each_part_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, red: bool
) -> None:
    page = tmp_path / "docs" / "gpu.md"
    monkeypatch.setattr(check, "PARTS", (part(WRITE), *([part("raise SystemExit('a | b')")] if red else [])))
    monkeypatch.setattr(gpu_world.backends, "check_parts", lambda: None)
    monkeypatch.setattr(sys, "argv", ["check.py", str(page)])
    with pretended_cuda.pretended(), pytest.raises(SystemExit) as ended:
        check.main()
    assert ended.value.code == int(red)
    text = page.read_text()
    assert (
        "H100" in text
        and f"torch {torch.__version__.split('+')[0]}" in text
        and "| x. import s | y | good | log-prob -2.000 -> -1.000; accuracy 20.0% -> 80.0% |" in text
    )
    assert ("| x. raise Sy | y | **red** | a / b; results are incomplete" in text) is red
    assert ("- x. raise Sy: mend it. Alone: `PYTHONPATH=. python -c raise" in text) is red
    assert re.search(r"transformer-engine [\dm].*, megatron-core \d.*, driver \w", text)
    seen = load_tool("write_status")._seen_on_gpu
    assert seen(page) and not seen(tmp_path / "none.md")
    page.write_text(text.replace("| good |", "| **red** |"))
    assert not seen(page), "a page of red rows shows nothing that works"


@pytest.mark.parametrize("script", [blocks, check, digits, logprob_peers])
def test_half_an_installation_is_one_line_for_each_script(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Any
) -> None:
    def broken() -> None:
        raise UsageError("transformer_engine is installed, but cannot be imported (no onnxscript): install it")

    monkeypatch.setattr(gpu_world.backends, "check_parts", broken)
    monkeypatch.setattr(digits, "ROOT", tmp_path)  # a script that goes on finds no runs and no examples
    monkeypatch.setattr(sys, "argv", ["script.py", str(tmp_path / "out.json")])
    with pretended_cuda.pretended(), pytest.raises(SystemExit, match=r"^error: transformer_engine is installed"):
        script.main()
    assert not list(tmp_path.iterdir())


def test_the_scripts_do_not_import_megatron_before_they_look() -> None:
    code = "import sys, tests.gpu.blocks, tests.gpu.digits, tests.gpu.logprob_peers, tests.gpu.check\n"
    code += "raise SystemExit(' '.join(m for m in sys.modules if m.startswith(('megatron', 'transformer_engine'))))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stderr.strip() == ""


def test_digits_begins_from_an_empty_folder_and_refuses_older_results(tmp_path: Path) -> None:
    """`sophia run` goes on with a finished run: its figures would be those of an earlier call."""
    folder = tmp_path / "runs" / "digits-gpu"
    for file, content in (("report.json", '{"evaluation": {"base": 1}}'), ("round-0/train/summary.json", "{}")):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)
    written = (folder / "report.json").stat().st_mtime
    assert digits.results(folder, written - 9)["evaluation"] == {"base": 1}
    with pytest.raises(SystemExit, match=r"report\.json is older than this run"):
        digits.results(folder, written + 9)
    os.utime(folder / "report.json", (written + 99, written + 99))
    with pytest.raises(SystemExit, match=r"summary\.json is older than this run"):
        digits.results(folder, written + 9)
    digits.empty(folder)
    assert folder.parent.is_dir() and not folder.exists()


def test_digits_empties_the_folder_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left = tmp_path / "runs" / "digits-gpu" / "report.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    (tmp_path / "runs" / "digits" / "data").mkdir(parents=True)
    shutil.copytree(HERE.parents[1] / "examples" / "digits", tmp_path / "examples" / "digits")
    monkeypatch.setattr(digits, "ROOT", tmp_path)
    monkeypatch.setattr(digits, "require_gpu", lambda: None)
    monkeypatch.setattr(digits.subprocess, "run", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["digits.py", str(tmp_path / "out.json")])
    with pytest.raises(FileNotFoundError):
        digits.main()
    assert not left.exists() and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("place", [1, 2, 3])
@pytest.mark.parametrize("fault", ["Transformer Engine missing", "not finished in time", "a crash"])
def test_measuring_parts_say_what_to_do(place: int, fault: str) -> None:
    assert fault in check.PARTS[place].remedy


def test_a_python_that_is_named_is_used() -> None:
    """In a container torch is in its own Python, whatever lies in .venv."""
    command = ["make", "-n", "--no-print-directory", "gpu-check", "PY=Makefile", "PYTHON=python9"]  # .venv is there
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # make may run the tests
    done = subprocess.run(command, cwd=HERE.parents[1], env=plain, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "python9 -m tests.gpu.check"

"""What works on this machine's GPU, in about ten minutes: `make gpu-check` writes docs/bench/gpu.md.

Each part runs in a process of its own with a time limit, in the order of docs/gpu.md (a to e). A part that fails makes
a red row, and the others go on. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "bench" / "gpu.md"
Judge = Callable[[dict[str, Any]], tuple[bool, str]]


@dataclass(frozen=True)
class Part:
    """A row of the table."""

    name: str
    against: str  # what it was compared with
    arguments: tuple[str, ...]  # of Python; "OUT" stands for the file of results
    seconds: int  # limit
    judge: Judge  # (good, what was seen)
    remedy: str  # what to do when it is red


def _errors(tree: Any) -> list[str]:
    """Every "error" text in the results."""
    if not isinstance(tree, dict):
        return []
    own = [tree["error"]] if isinstance(tree.get("error"), str) else []
    return own + [error for child in tree.values() for error in _errors(child)]


def blocks(found: dict[str, Any]) -> tuple[bool, str]:
    """Speeds, and losses of every FP8 recipe, its weights renewed, within 0.5% of bf16's."""
    gaps = {name: part["loss_gap"] for name, part in found["losses"].items() if "loss_gap" in part and name != "none"}
    speeds = [f"{name}: {part['tflops']:.0f} TFLOP/s" for name, part in found["steps"].items() if "tflops" in part]
    text = "; ".join([*speeds, *(f"{name}: loss {gap:+.2%}" for name, gap in gaps.items()), *_errors(found)])
    compared = bool(gaps) and gaps.keys() == found["losses"].keys() - {"none"}
    return not _errors(found) and bool(speeds) and compared and all(abs(gap) <= 0.005 for gap in gaps.values()), text


def kernels(found: dict[str, Any]) -> tuple[bool, str]:
    """Gradients of the log-probs within bf16's rounding. What peers lack is no fault of ours."""
    ours = [part for width in found["hidden"].values() for name, part in width.items() if name.startswith("nll")]
    errors = [part["gradient_error"] for part in ours if "gradient_error" in part]
    broken = [error for part in ours for error in _errors(part)]
    good = bool(errors) and not broken and all(error < 2e-2 for error in errors)
    return good, "; ".join([f"gradient error {max(errors, default=math.nan):.1e}", *broken])


def slice_of_38b(found: dict[str, Any]) -> tuple[bool, str]:
    """Layers and tower ran."""
    steps, tower = found["steps"].items(), found["tower"].items()
    speeds = [f"{n}: {p['tokens_per_second_and_layer']:,.0f} tokens/s and layer" for n, p in steps if "tflops" in p]
    tiles = [f"{n} tiles: {p['tiles_per_second']:,.0f} tiles/s" for n, p in tower if "tiles_per_second" in p]
    return not _errors(found) and bool(speeds) and bool(tiles), "; ".join([*speeds, *tiles, *_errors(found)])


def digits(found: dict[str, Any]) -> tuple[bool, str]:
    """The training raised the log-probs of what it learns."""
    before, after = (found["train"][name] for name in ("logprob_before", "logprob_after"))
    return after > before, f"log-prob {before:.3f} -> {after:.3f}"


def pytest_passed(found: dict[str, Any]) -> tuple[bool, str]:
    """pytest's last line, and which test failed or could not run here; a part that was skipped proves nothing."""
    lines = [line.removeprefix("=").strip() for line in found["lines"]]
    wrong = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    wrong += [line for line in lines if line.startswith("SKIPPED") and "no CUDA device" in line]
    last = lines[-1] if lines else ""
    return " passed" in last and not wrong, "; ".join([last.strip("= "), *wrong])


PARTS = (
    Part(
        "a. Transformer Engine's layers, CPU checkpoint under CUDA", "plain torch parts, same weights",
        ("-m", "pytest", "-q", "-ra", "tests/gpu/test_te_spec.py", "tests/gpu/test_cpu_checkpoint.py"),
        150, pytest_passed,
        "skipped: install Transformer Engine and what docs/gpu.md lists with it; failed: run that test alone with -x",
    ),
    Part(
        "b. 8B-wide layers, bf16 and FP8 with renewed weights", "bf16, the same 60 updates",
        ("tests/gpu/blocks.py", "OUT", "--layers", "2", "--lengths", "16384", "--recipes", "none", "tensorwise",
         "--loss-steps", "60"),
        150, blocks, "a loss apart: keep fp8.recipe = 'none' and report it; out of memory: --layers 1",
    ),
    Part(
        "c. log-probs and their gradients", "fp32 products of the same bf16 inputs",
        ("tests/gpu/logprob_peers.py", "OUT", "--hidden", "3584", "--chunks", "1024"), 60, kernels,
        "run it with other --chunks; a wrong gradient: do not train, report it",
    ),
    Part(
        "d. 38B-wide layers and the 6B tower", "nothing: calibrates `sophia plan --measured`",
        ("tests/gpu/blocks.py", "OUT", "--model", "internvl3_38b", "--layers", "2", "--lengths", "16384",
         "--recipes", "none", "--loss-steps", "0", "--tower-tiles", "8", "16"),
        90, slice_of_38b, "out of memory: --layers 1 --lengths 8192",
    ),
    Part(
        "e. digits, whole round over NCCL in bf16", "its own log-probs before",
        ("tests/gpu/digits.py", "OUT"), 300, digits,
        "read runs/digits-gpu/logs: the phase that failed names its log; `sophia doctor` says what the machine lacks",
    ),
)  # fmt: skip


def run(part: Part, folder: Path) -> tuple[bool, str, float]:
    """(good, what was seen, seconds) of one part."""
    out, since = folder / "out.json", time.monotonic()
    out.unlink(missing_ok=True)
    command = [sys.executable, *(str(out) if argument == "OUT" else argument for argument in part.arguments)]
    code, lines = _finished(command, part.seconds)
    last = lines[-1] if lines else ""
    try:
        found = json.loads(out.read_text()) if out.is_file() else {"lines": lines}
        good, text = part.judge(found)
    except (KeyError, TypeError, ValueError) as error:
        good, text = False, f"results are incomplete ({error})"
    if code:
        good, text = False, text if last in text else f"{last}; {text}"
    return good, text, time.monotonic() - since


def _finished(command: list[str], seconds: int) -> tuple[int, list[str]]:
    """Exit code and lines of output; at the limit everything that the command started ends, and frees the GPU."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment(),
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return 124, [*output.strip().splitlines(), f"not finished in {seconds} s"]
    return process.returncode, output.strip().splitlines()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def page(device: str, versions: str, rows: list[tuple[Part, bool, str, float]]) -> str:
    """The page's Markdown: one table, and what to do about red rows."""

    def cell(text: str) -> str:
        return text.replace("|", "/").replace("\n", " ")[:300]

    lines = [
        "# What works on a GPU", "",
        f"Written by `make gpu-check` on {time.strftime('%Y-%m-%d')}: {device}; {versions}.", "",
        "| part | compared with | result | what was seen | seconds |", "|---|---|---|---|---|",
        *(f"| {p.name} | {p.against} | {'good' if g else '**red**'} | {cell(t)} | {s:.0f} |" for p, g, t, s in rows),
    ]  # fmt: skip
    red = [part for part, good, _, _ in rows if not good]
    if red:
        lines += ["", "## What to do about the red rows", "", *(f"- {part.name}: {part.remedy}" for part in red)]
    return "\n".join(lines) + "\n"


def check_parts() -> None:
    """Raises SophiaError in one line where Transformer Engine is installed by halves."""
    from sophia_mcore.parallel import backend

    backend.check_parts()


def main() -> None:
    """Run every part, write the page, print it; exit code 1 if a row is red."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, nargs="?", default=PAGE)
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        raise SystemExit("error: torch cannot be imported here; docs/gpu.md lists what a GPU machine needs") from None
    if not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device; docs/gpu.md says what this script checks and where")
    try:
        check_parts()
    except SophiaError as error:
        raise SystemExit(f"error: {error}") from None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            good, text, seconds = run(part, Path(folder))
            rows.append((part, good, text, seconds))
            options.page.parent.mkdir(parents=True, exist_ok=True)
            options.page.write_text(page(torch.cuda.get_device_name(), f"torch {torch.__version__}", rows))
            print(f"{'good' if good else 'RED '} {part.name}: {text} ({seconds:.0f} s)", flush=True)
    raise SystemExit(int(any(not good for _, good, _, _ in rows)))


if __name__ == "__main__":
    main()

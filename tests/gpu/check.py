"""What works on this machine's GPU, in about ten minutes: `make gpu-check` writes docs/bench/gpu.md.

Each part runs in a process of its own with a time limit, in the order of docs/gpu.md (a to e). A part that fails makes
a red row, and the others go on. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """Speeds, and losses of FP8 with renewed weights within 0.5% of bf16's."""
    gaps = {name: part["loss_gap"] for name, part in found["losses"].items() if "loss_gap" in part and name != "none"}
    speeds = [f"{name}: {part['tflops']:.0f} TFLOP/s" for name, part in found["steps"].items() if "tflops" in part]
    text = "; ".join([*speeds, *(f"{name}: loss {gap:+.2%}" for name, gap in gaps.items()), *_errors(found)])
    return not _errors(found) and bool(speeds) and all(abs(gap) <= 0.005 for gap in gaps.values()), text


def kernels(found: dict[str, Any]) -> tuple[bool, str]:
    """Gradients of the log-probs within bf16's rounding."""
    worst = [
        part["gradient_error"] for width in found["hidden"].values() for n, part in width.items()
        if n.startswith("nll") and "gradient_error" in part
    ]  # fmt: skip
    ours = [
        e for width in found["hidden"].values() for n, part in width.items() if n[:3] == "nll" for e in _errors(part)
    ]
    good = bool(worst) and not ours and max(worst) < 2e-2
    return good, "; ".join([f"gradient error {max(worst, default=math.nan):.1e}", *ours])


def slice_of_38b(found: dict[str, Any]) -> tuple[bool, str]:
    """It ran."""
    speeds = [
        f"{n}: {p['tokens_per_second_and_layer']:,.0f} tokens/s and layer"
        for n, p in found["steps"].items()
        if "tflops" in p
    ]
    return not _errors(found) and bool(speeds), "; ".join([*speeds, *_errors(found)])


def digits(found: dict[str, Any]) -> tuple[bool, str]:
    """The training raised the log-probs of what it learns."""
    train = found["train"]
    return train["logprob_after"] > train[
        "logprob_before"
    ], f"log-prob {train['logprob_before']:.3f} -> {train['logprob_after']:.3f}"


def tests_passed(found: dict[str, Any]) -> tuple[bool, str]:
    """pytest's last line; its exit code decides."""
    return True, str(found.get("last", ""))


PARTS = (
    Part(
        "a. Transformer Engine's layers, CPU checkpoint under CUDA", "plain torch parts, same weights",
        ("-m", "pytest", "-q", "-ra", "tests/gpu/test_te_spec.py", "tests/gpu/test_cpu_checkpoint.py"),
        150, tests_passed,
        "run the named test alone with -x; an import error means that docs/gpu.md's list of packages is not met",
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
        ("tests/gpu/digits.py", "OUT"), 300, digits, "read runs/digits-gpu/: the phase that failed names its log",
    ),
)  # fmt: skip


def run(part: Part, folder: Path) -> tuple[bool, str, float]:
    """(good, what was seen, seconds) of one part."""
    out, since = folder / "out.json", time.monotonic()
    out.unlink(missing_ok=True)
    command = [sys.executable, *(str(out) if argument == "OUT" else argument for argument in part.arguments)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=part.seconds, env=_environment()
        )
        lines = (done.stdout + done.stderr).strip().splitlines() or [""]
        code, last = done.returncode, lines[-1]
    except subprocess.TimeoutExpired:
        code, last = 124, f"not finished in {part.seconds} s"
    try:
        found = json.loads(out.read_text()) if out.is_file() else {"last": last}
        good, text = part.judge(found)
    except (KeyError, ValueError) as error:
        good, text = False, f"results are incomplete ({error}); {last}"
    if code:
        good, text = False, last if text == last else f"{last}; {text}"
    return good, text, time.monotonic() - since


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
    from sophia_mcore.errors import SophiaError
    from sophia_mcore.parallel.backend import check_parts

    try:
        check_parts()
    except SophiaError as error:
        raise SystemExit(f"error: {error}") from None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            good, text, seconds = run(part, Path(folder))
            rows.append((part, good, text, seconds))
            options.page.write_text(page(torch.cuda.get_device_name(), f"torch {torch.__version__}", rows))
            print(f"{'good' if good else 'RED '} {part.name}: {text} ({seconds:.0f} s)", flush=True)
    raise SystemExit(int(any(not good for _, good, _, _ in rows)))


if __name__ == "__main__":
    main()

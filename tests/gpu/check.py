"""What works on this machine's GPU, in about ten minutes: `make gpu-check` writes docs/bench/gpu.md.

Each part runs in a process of its own with a time limit, in the order of docs/gpu.md (a to e). A part that fails makes
a red row, and the others go on. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
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

    @property
    def command(self) -> str:
        """What runs the part alone, from the root of the checkout."""
        return " ".join(["PYTHONPATH=.", "python", *("out.json" if a == "OUT" else a for a in self.arguments)])


def _errors(tree: Any) -> list[str]:
    """Every "error" text in the results."""
    if not isinstance(tree, dict):
        return []
    own = [tree["error"]] if isinstance(tree.get("error"), str) else []
    return own + [error for child in tree.values() for error in _errors(child)]


def _positive(part: dict[str, Any], name: str) -> bool:
    """Whether this figure was measured: a finite number above zero."""
    return isinstance(part.get(name), int | float) and math.isfinite(part[name]) and part[name] > 0


def _unmeasured(parts: dict[str, dict[str, Any]], name: str) -> list[str]:
    """What is said of parts without this figure; a part that failed has its own error."""
    return [f"{key}: no {name}" for key, part in parts.items() if "error" not in part and not _positive(part, name)]


def _not_numbers(parts: dict[str, dict[str, Any]]) -> list[str]:
    """What is said of parts with a loss that is not a number."""
    found = {key: part.get("losses", []) for key, part in parts.items()}
    return [f"{key}: a loss is not a number" for key, losses in found.items() if not all(map(math.isfinite, losses))]


def _speed(name: str, part: dict[str, Any]) -> str:
    memory = f", {part['peak_memory_gb']:.1f} GB" if "peak_memory_gb" in part else ""
    mfu = f" ({part['mfu_of_bf16_peak']:.0%} of bf16's peak)" if "mfu_of_bf16_peak" in part else ""
    return f"{name}: {part['tflops']:.0f} TFLOP/s{mfu}{memory}"


def blocks(found: dict[str, Any]) -> tuple[bool, str]:
    """Speeds, and losses of every FP8 recipe, its weights renewed, within 0.5% of bf16's."""
    steps, losses = found["steps"], found["losses"]
    recipes = losses.keys() - {"none"}
    wrong = _errors(found) + _unmeasured(steps, "tflops") + _not_numbers(steps) + _not_numbers(losses)
    measured = {name.split()[0] for name in steps}
    wrong += [f"{name}: no speed" for name in sorted(losses.keys() - measured)]
    wrong += [f"{name}: no losses" for name, part in losses.items() if not part.get("losses") and "error" not in part]
    gaps = {name: losses[name]["loss_gap"] for name in sorted(recipes) if "loss_gap" in losses[name]}
    wrong += [f"{name}: not compared with bf16" for name in sorted(recipes - gaps.keys())]
    speeds = [_speed(name, part) for name, part in steps.items() if _positive(part, "tflops")]
    text = "; ".join([*wrong, *speeds, *(f"{name}: loss {gap:+.2%}" for name, gap in gaps.items())])
    return not wrong and bool(speeds) and bool(gaps) and all(abs(gap) <= 0.005 for gap in gaps.values()), text


def kernels(found: dict[str, Any]) -> tuple[bool, str]:
    """Gradients of our log-probs within bf16's rounding; every case that is installed was measured."""
    widths = list(found["hidden"].values())
    wrong = [f"{n}: {e}" for width in widths for n, case in width.items() for e in _errors(case)]
    wrong += [text for width in widths for text in _unmeasured(width, "seconds")]
    ours = [(name, case) for width in widths for name, case in width.items() if name.startswith("nll")]
    wrong += [f"{name}: no gradient error" for name, case in ours if not _errors(case) and "gradient_error" not in case]
    errors = [case["gradient_error"] for _, case in ours if "gradient_error" in case]
    times = [
        f"{n}: {c['seconds'] * 1e3:.1f} ms" for width in widths for n, c in width.items() if _positive(c, "seconds")
    ]
    good = bool(errors) and not wrong and all(error < 2e-2 for error in errors)
    return good, "; ".join([*wrong, f"gradient error {max(errors, default=math.nan):.1e} (below 2e-02)", *times])


def slice_of_38b(found: dict[str, Any]) -> tuple[bool, str]:
    """Layers and tower ran."""
    steps, tower = found["steps"], found["tower"]
    wrong = _errors(found) + _unmeasured(steps, "tflops") + _unmeasured(steps, "tokens_per_second_and_layer")
    wrong += _unmeasured(tower, "tiles_per_second") + _not_numbers(steps)
    speeds = [
        f"{_speed(n, p)}, {p['tokens_per_second_and_layer']:,.0f} tokens/s and layer"
        for n, p in steps.items()
        if _positive(p, "tflops") and _positive(p, "tokens_per_second_and_layer")
    ]
    tiles = [f"{n} tiles: {p['tiles_per_second']:,.0f} tiles/s" for n, p in tower.items() if "tiles_per_second" in p]
    return not wrong and bool(speeds) and bool(tiles), "; ".join([*wrong, *speeds, *tiles])


def digits(found: dict[str, Any]) -> tuple[bool, str]:
    """The training raised the log-probs of what it learns, and accuracy did not fall."""
    before, after = (found["train"][name] for name in ("logprob_before", "logprob_after"))
    base, tuned = (found["evaluation"][name]["pass_at_1"] for name in ("base", "round-0"))
    text = f"log-prob {before:.3f} -> {after:.3f}; accuracy {base:.1%} -> {tuned:.1%}"
    return after > before and tuned >= base, text


def pytest_passed(found: dict[str, Any]) -> tuple[bool, str]:
    """pytest's last line, the worst errors that tests printed, and which failed or were skipped (no proof)."""
    lines = [line.removeprefix("=").strip() for line in found["lines"]]
    ends = [number for number, line in enumerate(lines) if "short test summary info" in line]
    wrong = [
        line for line in lines[ends[-1] if ends else 0 :] if line.startswith(("FAILED", "ERROR", "SKIPPED", "XFAIL"))
    ]
    printed = sorted({line for line in lines if line.startswith("worst error")})
    last = lines[-1].strip("= ") if lines else ""
    good = (
        " passed" in last
        and not wrong
        and not any(word in last for word in (" skipped", " failed", " error", " xfailed"))
    )
    return good, "; ".join([last, *wrong, *(printed or ["worst error: run it with -rA to see what the tests print"])])


COMMON = (
    "Transformer Engine missing: install it and what docs/gpu.md lists with it; not finished in time: look with"
    " nvidia-smi whether other work uses the GPU, then run the command below, which has no limit; a crash (a traceback"
    " or a signal instead of figures): run the command below and report its last lines"
)
PARTS = (
    Part(
        "a. Transformer Engine's layers, CPU checkpoint under CUDA", "plain torch parts, same weights",
        ("-m", "pytest", "-q", "-rA", "tests/gpu/test_te_spec.py", "tests/gpu/test_cpu_checkpoint.py"),
        150, pytest_passed,
        "skipped: install Transformer Engine and what docs/gpu.md lists with it; failed: run that test alone with -x",
    ),
    Part(
        "b. 8B-wide layers, bf16 and FP8 with renewed weights", "bf16, the same 60 updates",
        ("tests/gpu/blocks.py", "OUT", "--layers", "2", "--lengths", "16384", "--recipes", "none", "tensorwise",
         "--loss-steps", "60"),
        150, blocks, f"a loss apart: keep fp8.recipe = 'none' and report it; out of memory: --layers 1; {COMMON}",
    ),
    Part(
        "c. log-probs and their gradients", "fp32 products of the same bf16 inputs",
        ("tests/gpu/logprob_peers.py", "OUT", "--hidden", "3584", "--chunks", "1024"), 60, kernels,
        f"out of memory: smaller --chunks; a wrong gradient: do not train, report it; {COMMON}",
    ),
    Part(
        "d. 38B-wide layers and the 6B tower", "nothing: calibrates `sophia plan --measured`",
        ("tests/gpu/blocks.py", "OUT", "--model", "internvl3_38b", "--layers", "2", "--lengths", "16384",
         "--recipes", "none", "--loss-steps", "0", "--tower-tiles", "8", "16"),
        90, slice_of_38b, f"out of memory: --layers 1 --lengths 8192; {COMMON}",
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
    if code < 0:
        lines = [*lines, f"ended by signal {-code}"]
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
    """Exit code and lines of output; at the limit or Ctrl-C all that the command started ends, and frees the GPU."""
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
    except BaseException:  # Ctrl-C does not reach another session
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return process.returncode, output.strip().splitlines()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def page(device: str, versions: str, rows: list[tuple[Part, bool, str, float]]) -> str:
    """The page's Markdown: one table, and what to do about red rows."""

    def cell(text: str) -> str:
        return text.replace("|", "/").replace("\n", " ")[:600]

    lines = [
        "# What works on a GPU", "",
        f"Written by `make gpu-check` on {time.strftime('%Y-%m-%d')}: {device}; {versions}.", "",
        "| part | compared with | result | what was seen | seconds |", "|---|---|---|---|---|",
        *(f"| {p.name} | {p.against} | {'good' if g else '**red**'} | {cell(t)} | {s:.0f} |" for p, g, t, s in rows),
    ]  # fmt: skip
    red = [part for part, good, _, _ in rows if not good]
    if red:
        lines += [
            "",
            "## What to do about the red rows",
            "",
            *(f"- {part.name}: {part.remedy}. Alone: `{part.command}`" for part in red),
        ]
    return "\n".join(lines) + "\n"


def versions() -> str:
    """torch, Transformer Engine, megatron-core and the driver, in one line; what is missing is named too."""
    found = []
    for name in ("torch", "transformer-engine", "megatron-core"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        driver = "unknown"
    return ", ".join([*found, f"driver {driver}"])


def main() -> None:
    """Run every part, write the page, print it; exit code 1 if a row is red."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, nargs="?", default=PAGE)
    options = parser.parse_args()
    try:
        import pytest  # noqa: F401 - part a runs it
        import torch
    except ImportError as error:
        raise SystemExit(f"error: {error}; docs/gpu.md lists what a GPU machine needs") from None
    from tests.gpu.gpu_world import require_gpu

    require_gpu()
    rows, known = [], versions()
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            good, text, seconds = run(part, Path(folder))
            rows.append((part, good, text, seconds))
            options.page.parent.mkdir(parents=True, exist_ok=True)
            options.page.write_text(page(torch.cuda.get_device_name(), known, rows))
            print(f"{'good' if good else 'RED '} {part.name}: {text} ({seconds:.0f} s)", flush=True)
    raise SystemExit(int(any(not good for _, good, _, _ in rows)))


if __name__ == "__main__":
    main()

"""Run the tests and say what they cost: `python tools/run_tests.py quick|slow [pytest's arguments]`.

quick: everything without the mark `slow`; tests/slurm mostly waits, so it runs beside the others and its output comes
after theirs. tests/cuda_path runs in a process of its own: nobody else may see Transformer Engine. slow: the rest, and
what each test took. The last line is CPU-minutes, child processes included (not those that outlive their parent, such
as Slurm's daemons).
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import cuda_path  # beside this file

ROOT = Path(__file__).resolve().parents[1]
LIMIT_MINUTES = 20  # what `make test` should stay under on two cores; CONTRIBUTING.md says what to do when it does not
RECORD = ROOT / "build" / "status" / "cpu.json"  # how it ended: tools/write_status.py reads it
PYTEST = [sys.executable, "-m", "pytest", "-p", "tests.support.cpu_seconds"]
PYTEST += ["-p", "tests.support.record", "--record", str(RECORD)]


def quick(arguments: list[str]) -> list[int]:
    """Exit codes of the tests that are not slow."""
    log = ROOT / "build" / "tests-slurm.log"
    log.parent.mkdir(exist_ok=True)
    chosen = ["-m", "not slow", *arguments]
    with open(log, "wb") as file:
        beside = subprocess.Popen([*PYTEST, *chosen, "tests/slurm"], cwd=ROOT, stdout=file, stderr=file)
        try:
            others = subprocess.run(
                [*PYTEST, *chosen, "--ignore=tests/slurm", "--ignore=tests/cuda_path"], cwd=ROOT
            ).returncode
            codes = [others, beside.wait()]
        finally:
            beside.terminate()
            beside.wait()
    print(log.read_text(errors="replace"), flush=True)
    problem = cuda_path.fetch()
    codes.append(
        subprocess.run(cuda_path.command(sys.executable, chosen), cwd=ROOT, env=cuda_path.environment()).returncode
    )
    if problem:
        print(f"CUDA path: SKIPPED, Transformer Engine's Python files cannot be fetched: {problem}", flush=True)
    return codes


def main() -> int:
    """0 if all tests of the part passed."""
    part, arguments = sys.argv[1], sys.argv[2:]
    if part not in ("quick", "slow"):
        raise SystemExit(f"error: {part!r} is no part of the tests: quick, slow")
    began = time.monotonic()
    slow = [*PYTEST, "-m", "slow", "--durations=0", *arguments]
    codes = quick(arguments) if part == "quick" else [subprocess.run(slow, cwd=ROOT).returncode]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    minutes = (used.ru_utime + used.ru_stime) / 60
    limit = f" (at most {LIMIT_MINUTES})" if part == "quick" else ""
    print(f"{part} tests: {minutes:.1f} CPU-minutes{limit}, {(time.monotonic() - began) / 60:.1f} minutes")
    return int(any(code not in (0, 5) for code in codes))  # 5: nothing to run in this part


if __name__ == "__main__":
    sys.exit(main())

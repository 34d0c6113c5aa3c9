"""The CUDA path's tests: `python tools/cuda_path.py [pytest's arguments]`, as `make test-cuda-path` calls it.

Fetches the wheel `transformer_engine` by its pinned hash (1.2 MB, pure Python), unpacks it under build/ and runs
tests/cuda_path in a process that finds it there. Nothing of it is installed. Where it cannot be had, the tests are
skipped, and the last line says so. A wheel with another hash is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIN = ROOT / "constraints" / "cuda-path.txt"
SITE = ROOT / "build" / "cuda_path" / "site"
STATUS = ROOT / "build" / "status"  # how it ended, a record for each environment: tools/write_status.py reads them
NEXT = ROOT / ".venv-next" / "bin" / "python"


def fetch() -> str:
    """Make `SITE`; returns why it could not be fetched, or "". Exits with 1 if the wheel has not the pinned hash."""
    stamp = SITE / "pin.txt"
    if stamp.is_file() and stamp.read_text() == PIN.read_text():
        return ""
    shutil.rmtree(SITE, ignore_errors=True)  # files of another pin, which nobody may take for those of this one
    SITE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SITE.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--dest", folder, "--requirement", str(PIN)]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode and "hash" in done.stderr.lower():
            said = " ".join(done.stderr.split())
            raise SystemExit(f"error: {PIN.name}: pip has found no wheel with the pinned hash: {said}")
        if done.returncode or len(wheels) != 1:
            return (done.stderr.strip().splitlines() or ["pip has fetched no wheel"])[-1]
        unpack(wheels[0], Path(folder) / "site")
        (Path(folder) / "site" / stamp.name).write_text(PIN.read_text())
        (Path(folder) / "site").rename(SITE)
    return ""


def unpack(wheel: Path, folder: Path) -> None:
    """The wheel's files; its own check for the compiled library finds an empty one, and no mark of an installation."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (information,) = folder.glob("transformer_engine-*.dist-info")
    (information / "RECORD").write_text(f"{information.name}/METADATA,,\n")
    (folder / "libtransformer_engine.so").touch()


def command(python: Path | str, arguments: list[str], record: str = "cuda_path") -> list[str]:
    """pytest on tests/cuda_path, with Transformer Engine where it could be fetched; leaves `record`.json."""
    loaded = ["-p", "tests.cuda_path.stand_in"] if SITE.is_dir() else []
    recorded = ["-p", "tests.support.record", "--record", str(STATUS / f"{record}.json")]
    return [str(python), "-m", "pytest", *loaded, *recorded, *arguments, "tests/cuda_path"]


def environment() -> dict[str, str]:
    """The path with `SITE` on it: for these tests only."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH")]))}


def main() -> int:
    """0 if all that could run passed: with this environment's megatron-core, and with the newest in .venv-next."""
    problem, arguments = fetch(), sys.argv[1:]
    lanes = [command(sys.executable, arguments)]
    if NEXT.is_file():
        lanes.append(command(NEXT, arguments, "cuda_path_next"))
    else:
        print("CUDA path: SKIPPED with the newest megatron-core: no .venv-next (`make test-next` makes it)")
    codes = [subprocess.run(lane, cwd=ROOT, env=environment()).returncode for lane in lanes]
    if problem:
        print(f"CUDA path: SKIPPED, Transformer Engine's Python files cannot be fetched: {problem}")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())

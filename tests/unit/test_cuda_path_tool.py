"""How tools/cuda_path.py fetches its wheel: the real pip, offline, with a wheel in a folder."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.tools import load_tool

INFORMATION = "transformer_engine-2.20.2.dist-info"
FILES = {
    "transformer_engine/__init__.py": "",
    f"{INFORMATION}/METADATA": "Metadata-Version: 2.1\nName: transformer-engine\nVersion: 2.20.2\n",
    f"{INFORMATION}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{INFORMATION}/RECORD": "",
}


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool with its files in `tmp_path`, and an older site there; pip looks at tmp_path/wheels alone."""
    found = load_tool("cuda_path")
    monkeypatch.setattr(found, "PIN", tmp_path / "pin.txt")
    monkeypatch.setattr(found, "SITE", tmp_path / "site")
    (tmp_path / "wheels").mkdir()
    found.SITE.mkdir()
    (found.SITE / "pin.txt").write_text("an older pin")
    (found.SITE / "older.py").touch()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return found


def pin(tool: ModuleType, digest: str) -> None:
    tool.PIN.write_text(f"transformer-engine==2.20.2 --hash=sha256:{digest}\n")


def make_wheel(folder: Path) -> str:
    """The wheel's sha256."""
    wheel = folder / "transformer_engine-2.20.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_the_pinned_wheel_replaces_an_older_site(tool: ModuleType, tmp_path: Path) -> None:
    pin(tool, make_wheel(tmp_path / "wheels"))
    assert tool.fetch() == ""
    assert (tool.SITE / "transformer_engine" / "__init__.py").is_file() and not (tool.SITE / "older.py").exists()
    assert "tests.cuda_path.stand_in" in tool.command("python", [])


def test_a_wheel_with_another_hash_is_an_error(tool: ModuleType, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels")
    pin(tool, "0" * 64)
    with pytest.raises(SystemExit, match="hash") as raised:  # before anything runs
        tool.main()
    assert isinstance(raised.value.code, str) and len(raised.value.code.splitlines()) == 1  # a text: exit status 1
    assert not tool.SITE.exists()


def test_a_wheel_that_cannot_be_fetched_skips_the_tests_and_uses_no_older_site(tool: ModuleType) -> None:
    pin(tool, "0" * 64)
    assert "transformer-engine" in tool.fetch()
    assert not tool.SITE.exists() and "tests.cuda_path.stand_in" not in tool.command("python", [])

"""A package that is not installed is one line that says what to install, never a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sophia_mcore.errors import EXTRAS, missing_package
from sophia_mcore.weights.conversion import named_dtype

ROOT = Path(__file__).parents[2]
WITHOUT = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {module!r}", name={module!r})
sys.meta_path.insert(0, Gone())
sys.argv = {argv!r}
from sophia_mcore.cli import main
sys.exit(main())
"""


PACKAGES = {"megatron": "megatron-core", "sklearn": "scikit-learn", "mlflow": "mlflow-skinny"}


@pytest.mark.parametrize("module", EXTRAS)
def test_the_extra_that_is_named_installs_the_package(module: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    package = PACKAGES.get(module, module).replace("_", "-").lower()
    named = re.findall(r"sophia-mcore\[(\w+)\]", missing_package(module))
    assert named
    for extra in named:
        installed = [re.split(r"[<>=]", one)[0].replace("_", "-").lower() for one in extras[extra]]
        assert package in installed, extra


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("torch", ["convert", "{model}", "{out}", "--to", "megatron"], "convert"),
    ],
)
def test_one_line_names_the_extra(tmp_path: Path, module: str, arguments: list[str], extra: str) -> None:
    places = {
        "model": str(ROOT / "examples" / "digits" / "base" / "policy"),
        "out": str(tmp_path / "out"),
    }
    argv = ["sophia", *(argument.format(**places) for argument in arguments)]
    code = WITHOUT.format(module=module, argv=argv)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and f"sophia-mcore[{extra}]" in lines[0]
    assert "Traceback" not in done.stderr


def test_dtypes_by_their_usual_names() -> None:
    for name, spellings in {"BF16": "bf16 BF16 bfloat16 torch.bfloat16", "F32": "fp32 float32 F32"}.items():
        assert {named_dtype(text) for text in spellings.split()} == {name}
    assert named_dtype("int8") == "int8"
    assert named_dtype(None) is None

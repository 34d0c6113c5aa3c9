"""Transformer Engine's Python files without its compiled parts, its CUDA libraries and ONNX: they import on a CPU.

The files come from the wheel `transformer_engine` (pure Python; tools/cuda_path.py fetches and unpacks it), never from
this project. No kernel works: whatever the extension is asked for is a `Stand`, which `CALLS` counts when it is called.
Loading this module with pytest's `-p` installs it.
"""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._dynamo

SITE = Path(__file__).resolve().parents[2] / "build" / "cuda_path" / "site"
WHAT = "stand-in for Transformer Engine's compiled extension (tests/cuda_path): it computes nothing"
ABSENT = ("onnx", "onnxscript", "onnx_ir", "einops", "nvdlfw_inspect")
CALLS: Counter[str] = Counter()  # calls of the extension by name: each would be a kernel on a GPU


class Stand:
    """Stands for anything that the extension has: an enumeration, its member, a function."""

    def __init__(self, name: str = "anything", number: int = 0) -> None:
        self.__dict__.update(_name=name, _number=number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__dict__[name] = found = Stand(f"{self._name}.{name}")
        return found

    def __call__(self, *_: Any, **__: Any) -> Any:
        CALLS[self._name] += 1
        return Stand(f"{self._name}()")

    def __repr__(self) -> str:
        return f"<{self._name}: {WHAT}>"

    def __hash__(self) -> int:
        return hash(self._name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stand) and other._name == self._name

    def __int__(self) -> int:
        return self._number

    __index__ = __int__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (object,)

    def __or__(self, other: object) -> Any:
        return self

    __ror__ = __or__


class StandModule(types.ModuleType):
    """A module that has everything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = Stand(name)
        setattr(self, name, found)
        return found


class Finder:
    """Finds the packages that Transformer Engine imports and that nothing here needs."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in ABSENT or name.startswith("transformer_engine.pytorch.triton"):
            return importlib.util.spec_from_loader(name, Finder, is_package=True)  # type: ignore[arg-type]
        return None

    @staticmethod
    def create_module(spec: Any) -> types.ModuleType:
        return StandModule(spec.name)

    @staticmethod
    def exec_module(module: Any) -> None:
        module.__path__, module.__version__ = [], "99.0"


class Members:
    """An enumeration of the extension, with the members that Transformer Engine's own Python copy of it has."""

    def __init__(self, file: Path, name: str, prefix: str = "") -> None:
        tree = ast.parse(file.read_text())
        (found,) = (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name)
        names = [t.id for a in found.body if isinstance(a, ast.Assign) for t in a.targets if isinstance(t, ast.Name)]
        # a number each: members of an IntEnum with the same number are one
        self.__members__ = {prefix + n: Stand(f"{name}.{n}", number) for number, n in enumerate(names)}
        self.__dict__.update(self.__members__)

    def __call__(self, *_: Any) -> Stand:
        return Stand("member")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (object,)


def install() -> None:
    """Import transformer_engine.pytorch this way, for the rest of this process."""
    if importlib.util.find_spec("transformer_engine") is None:  # tools/cuda_path.py puts SITE on the path
        raise ModuleNotFoundError(f"{SITE}: no Transformer Engine; `make test-cuda-path` fetches its Python files")
    torch._dynamo.config.disable = True  # megatron-core compiles its fused activations: a compiler run per process
    folder = SITE / "transformer_engine" / "pytorch"
    extension: Any = StandModule("transformer_engine_torch", WHAT)
    extension.DType = Members(folder / "constants.py", "DType")
    fused = folder / "cpp_extensions" / "fused_attn.py"
    extension.NVTE_Fused_Attn_Backend = Members(fused, "FusedAttnBackend", "NVTE_")
    sys.modules["transformer_engine_torch"] = extension
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
    with mock.patch.object(ctypes, "CDLL", lambda *_, **__: Stand("library")):
        import transformer_engine.common

        transformer_engine.common.load_framework_extension = lambda *_, **__: None
        import transformer_engine.pytorch


if "transformer_engine_torch" not in sys.modules:
    install()

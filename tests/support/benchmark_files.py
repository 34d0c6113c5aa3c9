"""The tiny data sets in the benchmarks' own layouts, where this checkout has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sophia_mcore.config.schema import Source

_FOLDERS = (parent / "shared/benchmarks" for parent in Path(__file__).resolve().parents)
ROOT = next((path for path in _FOLDERS if path.is_dir()), None)
NEEDED = pytest.mark.skipif(ROOT is None, reason="needs shared/benchmarks (tiny data sets, cases) beside the checkout")
HUB = {
    "mmmu": "MMMU", "mmmupro": "MMMU_Pro", "mathvista": "MathVista", "mathverse": "MathVerse",
    "dynamath": "DynaMath_Sample", "mathvision": "MathVision", "mvmath": "MV-MATH", "olympiadbench": "OlympiadBench",
}  # fmt: skip
TABLES = {
    "mmmu": "MMMU_DEV_VAL", "mmmupro": "MMMU_Pro_V_COT", "mathvista": "MathVista_MINI",
    "mathverse": "MathVerse_MINI_Vision_Only", "dynamath": "DynaMath", "mathvision": "MathVision",
    "olympiadbench": "OlympiadBench",
}  # fmt: skip


def folder() -> Path:
    """The folder of the tiny data sets."""
    assert ROOT is not None
    return ROOT


def hub(name: str) -> Source:
    """The hub's layout of a benchmark."""
    return Source(benchmark=name, path=str(folder() / "data/hub" / HUB[name]))


def table(name: str) -> Source:
    """VLMEvalKit's table of a benchmark."""
    return Source(benchmark=name, path=str(folder() / "data/vlmevalkit" / f"{TABLES[name]}.tsv"))

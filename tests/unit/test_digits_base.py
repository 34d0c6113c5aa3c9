"""The base models that the digits example ships, and the recipe that made them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sophia_mcore.pretrained.complete import check_model_dir
from sophia_mcore.pretrained.spec import ModelSpec

ROOT = Path(__file__).parents[2]
BASE = ROOT / "examples" / "digits" / "base"
LEAST = {  # below this the round has too little to learn from
    "lookup": 0.99, "arithmetic": 0.95, "captions_greedy": 0.75, "digits_greedy": 0.9,
    "captions_sampled": 0.4, "digits_sampled": 0.9, "reasoning_greedy": 0.85, "reasoning_sampled": 0.8,
}  # fmt: skip


def assert_figures(folder: Path) -> None:
    figures = json.loads((folder / "base.json").read_text())["figures"]
    assert figures.keys() == LEAST.keys()
    poor = {name: value for name, value in figures.items() if value < LEAST[name]}
    assert not poor


def test_the_shipped_models_are_whole_and_small() -> None:
    for name in ("policy", "reasoner"):
        check_model_dir(BASE / name)
    assert ModelSpec.from_model_dir(BASE / "policy").vision is not None
    assert ModelSpec.from_model_dir(BASE / "reasoner").vision is None
    assert sum(path.stat().st_size for path in BASE.rglob("*") if path.is_file()) < 8_000_000
    assert_figures(BASE)


@pytest.mark.slow
def test_the_recipe_makes_equally_good_ones(tmp_path: Path) -> None:
    command = [sys.executable, "examples/digits/make_base_models.py", "--out", str(tmp_path / "base")]
    subprocess.run(command, check=True, cwd=ROOT)
    assert_figures(tmp_path / "base")

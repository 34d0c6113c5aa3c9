"""A checkpoint written on the CPU over gloo goes on under CUDA, with Transformer Engine's modules where they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.gpu_world import needs_cuda

SCRIPT = Path(__file__).with_name("train_tiny.py")


def train(folder: Path, steps: int, cuda: bool) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    if not cuda:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    subprocess.run([sys.executable, "-W", "ignore", str(SCRIPT), str(folder), str(steps)], check=True, env=environment)


def losses(folder: Path) -> list[float]:
    lines = (folder / "run" / "round-0" / "train" / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


@needs_cuda
def test_training_goes_on_under_cuda_from_a_checkpoint_of_the_cpu(tmp_path: Path) -> None:
    train(tmp_path / "cpu", 4, cuda=False)
    shutil.copytree(tmp_path / "cpu", tmp_path / "cuda")
    train(tmp_path / "cpu", 6, cuda=False)
    train(tmp_path / "cuda", 6, cuda=True)
    wanted, found = losses(tmp_path / "cpu"), losses(tmp_path / "cuda")
    assert len(found) == 6 and found[:4] == wanted[:4]
    worst = max(abs(f / w - 1.0) for f, w in zip(found[4:], wanted[4:], strict=True))
    print(f"worst error, losses: {worst:.1e} (at most 3e-02)")  # check.py shows it
    assert found[4:] == pytest.approx(wanted[4:], rel=0.03)

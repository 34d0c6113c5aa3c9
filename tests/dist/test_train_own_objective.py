"""A user's own objective trains: the same as the built-in one that it repeats, whatever its gradient is declared as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.errors import SophiaError
from sophia_mcore.launch.local import claim_folder
from tests.support import train_world
from tests.support.harness import run

OWN = """
import torch
from sophia_mcore.objective.losses import Terms


def loss(logprobs_T, log_ratio_T, tokens, *, clip=0.2):
    ratio_T = log_ratio_T.exp()
    plain_T, clipped_T = ratio_T * tokens.weights_T, ratio_T.clamp(1.0 - clip, 1.0 + clip) * tokens.weights_T
    return Terms(-torch.minimum(plain_T, clipped_T), clipped_T < plain_T)


def tensor(logprobs_T, log_ratio_T, tokens):
    return -logprobs_T


def short(logprobs_T, log_ratio_T, tokens):
    return Terms(-logprobs_T[1:])
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_world.make_policy(tmp_path_factory.mktemp("policy") / "model")


def losses(folder: Path, policy: Path, loss: dict[str, Any], ranks: int = 1) -> list[float]:
    """Losses of two updates from the kept trajectories."""
    config, folders = train_world.make_run(
        folder,
        policy,
        parallel={"processes": ranks},
        objective={"loss": loss, "trajectories": "kept", "behaviour": "unit"},
        train={"steps": 2, "save_every_steps": 9},
    )
    claim_folder(config, folders)
    assert run(train_world.train, ranks, config, folders) == [True] * ranks
    lines = map(json.loads, (folders.round(0).train / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_trains_two_steps(tmp_path: Path, policy: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    own = {"name": f"{tmp_path}/mine.py:loss", "options": {"clip": 0.3}}
    grpo = {"name": "grpo", "clip_low": 0.3, "clip_high": 0.3}
    wanted = losses(tmp_path / "grpo", policy, grpo)
    assert len(wanted) == 2 and wanted[0] != wanted[1]
    assert losses(tmp_path / "token", policy, own | {"gradient": "token"}) == wanted
    assert losses(tmp_path / "sequence", policy, own, ranks=2) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [("tensor", r"must return Terms\(loss_T\), not Tensor"), ("short", r"loss_T has the shape \[191\], not \[192\]")],
)
def test_what_it_must_return(tmp_path: Path, policy: Path, name: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(SophiaError, match=message):
        losses(tmp_path / "run", policy, {"name": f"{tmp_path}/mine.py:{name}"})

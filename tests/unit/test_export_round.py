"""The export phase: only what has been trained to the end is exported, and what is damaged is made again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.progress import NoProgress
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.weights.conversion import Conversion
from sophia_mcore.weights.convert import convert
from sophia_mcore.weights.export import export_round
from sophia_mcore.weights.verify import verify
from tests.support.configs import make_config
from tests.support.weights_models import FAMILIES, make, write


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Config, RunFolder]:
    """A run whose training of 7 steps has ended, with checkpoints of steps 4 and 7."""
    sizes = next(iter(FAMILIES.values()))
    policy, run = write(tmp_path / "policy", sizes, make(sizes), "hf"), RunFolder(tmp_path / "run")
    for step in (4, 7):
        run.round(0).checkpoints.mkdir(parents=True, exist_ok=True)
        convert(Conversion(policy, run.round(0).checkpoints / f"step-{step:08d}", "megatron"))
    (run.round(0).train / "summary.json").write_text(json.dumps({"steps": 7}))
    return make_config(run.path, policy, policy), run


def test_the_last_checkpoint_is_exported_once(trained: tuple[Config, RunFolder]) -> None:
    config, run = trained
    (config.models.policy / "README.md").write_text("the base's own card")
    export_round(Round(config, run, 0), NoProgress())
    assert verify(config.models.policy, run.round(0).model).is_equal
    assert not (run.round(0).model / "README.md").exists(), "the base's card says nothing of these weights"
    before = {file.name: file.stat().st_mtime_ns for file in run.round(0).model.iterdir()}
    export_round(Round(config, run, 0), NoProgress())
    assert before == {file.name: file.stat().st_mtime_ns for file in run.round(0).model.iterdir()}


@pytest.mark.parametrize("steps", [None, 9], ids=["no summary", "more steps than saved"])
def test_a_training_that_is_not_finished_is_not_exported(trained: tuple[Config, RunFolder], steps: int | None) -> None:
    config, run = trained
    summary = run.round(0).train / "summary.json"
    summary.unlink() if steps is None else summary.write_text(json.dumps({"steps": steps}))
    with pytest.raises(SophiaError, match=r"step-00000007 is the newest checkpoint, but .* `sophia train` again"):
        export_round(Round(config, run, 0), NoProgress())
    assert not run.round(0).model.exists()


def test_a_damaged_export_is_made_again(trained: tuple[Config, RunFolder]) -> None:
    config, run = trained
    export_round(Round(config, run, 0), NoProgress())
    weights = next(run.round(0).model.glob("*.safetensors"))
    os.truncate(weights, weights.stat().st_size - 100)
    export_round(Round(config, run, 0), NoProgress())
    assert verify(config.models.policy, run.round(0).model).is_equal

"""Keys that have moved: read from their old place, with a warning that names the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sophia_mcore.config import dump_toml, load_config
from sophia_mcore.config.moved import MOVED
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError

MINIMAL = """
[run]
name = "x"
folder = "runs/x"
[models]
policy = "p"
reasoner = "r"
[[data.questions]]
kind = "jsonl"
path = "q.jsonl"
"""
# [objective], [train] and [fp8] of a run folder that the version before has written
OLD = """
[objective]
name = "grpo"
behaviour = "reference"
normalization = "token_mean"
chunk_tokens = 1024
trajectories = "all"
reward = "outcome"
advantage = "group_normalized"
fresh_share = 0.0
correction = "none"
correction_low = 0.5
correction_high = 2.0
log_entropy = false
clip_low = 0.2
clip_high = 0.28
dual_clip = 3.0
[train]
epochs = 1.0
dtype = "bfloat16"
fp8 = "tensorwise"
fp8_backend = "emulated"
[fp8]
format = "hybrid"
layers_at_start_in_bf16 = 1
layers_in_bf16 = [2]
without_check = true
check_samples = 32
check_steps = 20
max_logprob_gap_mean = 0.06
max_logprob_gap_p99 = 0.6
min_gradient_cosine = 0.9
max_gradient_norm_gap = 0.2
max_loss_gap = 0.02
"""
NEW = """
[objective]
behaviour = "reference"
[objective.loss]
name = "grpo"
clip_high = 0.28
dual_clip = 3.0
[fp8]
recipe = "tensorwise"
backend = "emulated"
layers_at_start_in_bf16 = 1
layers_in_bf16 = [2]
[fp8.check]
skip = true
samples = 32
steps = 20
max_logprob_gap_mean = 0.06
max_logprob_gap_p99 = 0.6
min_gradient_cosine = 0.9
max_gradient_norm_gap = 0.2
max_loss_gap = 0.02
"""


def write(tmp_path: Path, extra: str, name: str = "run.toml", base: str = MINIMAL) -> Path:
    path = tmp_path / name
    path.write_text(base + extra)
    return path


def test_the_configuration_of_an_old_run_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = load_config(write(tmp_path, OLD))
    said = capsys.readouterr().err
    head, *lines = said.splitlines()
    assert head.endswith(f"run.toml: {len(lines)} keys have moved; the old place is read in this version only:")
    assert {"  objective.name is objective.loss.name now", "  train.fp8 is fp8.recipe now"} <= set(lines)
    assert "  fp8.max_loss_gap is fp8.check.max_loss_gap now" in lines and max(map(len, lines)) < 80
    assert old == load_config(write(tmp_path, NEW))
    write(tmp_path, dump_toml(old), base="")
    assert load_config(tmp_path / "run.toml") == old
    assert capsys.readouterr().err == ""


def test_old_keys_in_an_overlay_and_in_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = write(tmp_path, "[objective]\nname = 'awr'\n", "more.toml", "")
    path = write(tmp_path, "[objective.loss]\nname = 'dft'\n")
    config = load_config(path, [overlay], ["objective.beta=0.5", "train.fp8=delayed"])
    assert (config.objective.loss.name, config.objective.loss.beta, config.fp8.recipe) == ("awr", 0.5, "delayed")
    said = capsys.readouterr().err
    assert "more.toml: objective.name is" in said and "--set train.fp8=delayed: train.fp8 is fp8.recipe now" in said


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("[objective]\nname = 'awr'\n[objective.loss]\nname = 'dft'\n", "objective.name is .* now, and both are given"),
        ("[objective]\nname = 'awr'\nloss = 'dft'\n", "objective.loss is not a section"),
        ("[objective]\nname = 'awr'\nclip_low = 0.1\n", r"objective.loss.clip_low: unknown key"),
    ],
)
def test_what_cannot_be_moved_is_refused(tmp_path: Path, extra: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config(write(tmp_path, extra))


def test_a_moved_key_leads_to_one_that_exists() -> None:
    for old, new in MOVED.items():
        *path, key = old.split(".")
        model: object = Config
        for part in path:
            model = model.model_fields[part].annotation  # type: ignore[attr-defined]
        assert key not in model.model_fields, f"{old} has not moved"  # type: ignore[attr-defined]
        if not new.startswith("objective.loss."):
            *path, key = new.split(".")
            model = Config
            for part in path:
                model = model.model_fields[part].annotation  # type: ignore[attr-defined]
            assert key in model.model_fields, new  # type: ignore[attr-defined]


def test_keys_that_have_gone_are_read_where_they_had_no_effect(tmp_path: Path) -> None:
    plain, old = tmp_path / "plain.toml", tmp_path / "old.toml"
    plain.write_text(MINIMAL)
    old.write_text(MINIMAL + "[train]\noptimizer_offload_fraction = 0.0\n[fp8]\nprimary_weights = false\n")
    assert load_config(old) == load_config(plain)
    assert load_config(plain, sets=["train.optimizer_offload_fraction=0"]) == load_config(plain)
    with pytest.raises(UsageError, match=r"--set fp8.primary_weights=true: .* not supported: master weights"):
        load_config(plain, sets=["fp8.primary_weights=true"])

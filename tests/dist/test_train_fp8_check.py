"""FP8 is measured before it is used: the check on a tiny run, and what training refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch import fp8_check as command
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.train.fp8 import worker as fp8_worker
from sophia_mcore.train.fp8.check import curve_gap, smallest
from sophia_mcore.train.fp8.gate import check_digest, require_check
from sophia_mcore.train.mismatch import gap_statistics
from tests.support import train_world
from tests.support.harness import run

LOOSE = {
    "max_logprob_gap_mean": 10.0, "max_logprob_gap_p99": 10.0, "min_gradient_cosine": 0.0,
    "max_gradient_norm_gap": 10.0, "max_loss_gap": 10.0, "samples": 8, "steps": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_world.make_policy(tmp_path_factory.mktemp("policy") / "model")


def low(check: dict[str, Any], recipe: str = "tensorwise", **fp8: Any) -> dict[str, Any]:
    """The section [fp8]; ``check`` replaces single thresholds of it."""
    return {"recipe": recipe, "backend": "emulated", "check": LOOSE | check, **fp8}


def world(
    folder: Path, policy: Path, check: dict[str, Any], recipe: str = "tensorwise", **fp8: Any
) -> tuple[Config, RunFolder]:
    config, run = train_world.make_run(folder, policy)
    config = Config.model_validate(config.model_dump() | {"fp8": low(check, recipe, **fp8)})
    run.config_file.write_text(dump_toml(config))
    return config, run


def checked(folder: RunFolder, ranks: int = 1) -> dict[str, Any]:
    codes = run(lambda: fp8_worker.main([str(folder.config_file), "--round", "0"]), ranks)
    assert codes == [0] * ranks
    return json.loads(folder.fp8_check_file.read_text())


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> dict[str, Any]:
    """A check that has passed, on one rank."""
    return checked(world(tmp_path_factory.mktemp("passed") / "run", policy, {})[1])


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> tuple[Config, RunFolder, dict[str, Any]]:
    """One with a limit that FP8 cannot meet."""
    config, folder = world(tmp_path_factory.mktemp("failed") / "run", policy, {"max_logprob_gap_mean": 1e-9})
    return config, folder, checked(folder)


def test_passed_check_admits_training(tmp_path: Path, policy: Path) -> None:
    config, folder = world(tmp_path / "run", policy, {})
    with pytest.raises(SophiaError, match="without a check of it"):
        require_check(config, folder)
    with pytest.raises(SophiaError, match=r"FP8 is not admitted.*sophia fp8-check"):
        run(train_world.train, 1, config, folder)
    found = checked(folder)
    assert found["passed"] and found["failures"] == [] and found["proposed"] == []
    assert 0 < found["logprob_gap"]["mean"] <= found["logprob_gap"]["p99"] <= found["logprob_gap"]["max"] < 5
    assert [row["layer"] for row in found["layers"]] == [0, 1]
    assert all(0.8 < row["cosine"] < 1 and 0.8 < row["norm_ratio"] < 1.2 for row in found["layers"])
    assert len(found["loss"]["fp8"]) == 3 and found["loss"]["fp8"] != found["loss"]["reference"]
    require_check(config, folder)
    assert run(train_world.train, 1, config, folder) == [True]
    other = Config.model_validate(config.model_dump() | {"fp8": low({}, format="e4m3")})
    with pytest.raises(SophiaError, match=r"other FP8 settings or another policy \(format\)"):
        require_check(other, folder)
    require_check(Config.model_validate(other.model_dump() | {"fp8": low({"skip": True})}), folder)
    folder.fp8_check_file.write_text(json.dumps(found | {"loss": None}))
    with pytest.raises(SophiaError, match=r"fp8_check.json: cannot be read \(no loss curves\)"):
        require_check(config, folder)


def test_the_command_itself(tmp_path: Path, policy: Path) -> None:
    """Under the real torchrun, with progress over a pipe."""
    config, folder = world(tmp_path / "run", policy, {})
    here = config.environments.model_copy(update={"trainer": Path(sys.executable)})
    text = command.run_fp8_check(config.model_copy(update={"environments": here}), 0)
    assert "FP8 is admitted" in text and (folder.path / "fp8_check.html").is_file()
    require_check(config, folder)


def test_failed_check_proposes_layers_and_refuses(
    tmp_path: Path, policy: Path, failed: tuple[Config, RunFolder, dict[str, Any]]
) -> None:
    """The proposal then meets the limits."""
    config, folder, found = failed
    assert not found["passed"] and "log-prob gap mean" in found["failures"][0]
    assert found["proposed"] == [0, 1]  # every layer rounds
    with pytest.raises(SophiaError, match="did not pass"):
        require_check(config, folder)
    _, kept = world(tmp_path / "kept", policy, {"max_logprob_gap_mean": 1e-9}, layers_in_bf16=[0, 1])
    found = checked(kept)
    assert found["passed"] and found["logprob_gap"]["max"] == 0.0


def test_proposal_is_no_larger_than_needed(tmp_path: Path, policy: Path, passed: dict[str, Any]) -> None:
    alone = {row["layer"]: row["alone"] for row in passed["layers"]}
    worst = max(alone, key=lambda layer: alone[layer])
    rest = next(value for layer, value in alone.items() if layer != worst)
    _, folder = world(tmp_path / "b", policy, {"max_logprob_gap_mean": rest * 1.0001})
    assert checked(folder)["proposed"] == [worst]


def test_layouts_find_the_same(tmp_path: Path, policy: Path, passed: dict[str, Any]) -> None:
    """Pipeline stages have different layers; two replicas see different rows."""
    config, two = train_world.make_run(tmp_path / "two", policy, parallel={"pipeline": 2, "processes": 4})
    two.config_file.write_text(dump_toml(Config.model_validate(config.model_dump() | {"fp8": low({})})))
    found = checked(two, 4)
    assert found["logprob_gap"]["tokens"] == passed["logprob_gap"]["tokens"]
    for row, other in zip(found["layers"], passed["layers"], strict=True):
        assert row["cosine"] == pytest.approx(other["cosine"], abs=0.01)


def test_delayed_has_no_proposal(tmp_path: Path, policy: Path) -> None:
    _, folder = world(tmp_path / "run", policy, {"max_logprob_gap_mean": 1e-9}, "delayed")
    found = checked(folder)
    assert found["proposed"] is None and "try tensorwise" in command._advice(found)


def test_page_and_advice(failed: tuple[Config, RunFolder, dict[str, Any]]) -> None:
    from sophia_mcore.report.fp8_page import write_fp8_page

    _, folder, found = failed
    text = write_fp8_page(folder).read_text()
    assert "not passed" in text and text.count("<figure>") == 4
    assert (
        "<script" not in text.split("<main>")[1].split("</main>")[0]
    )  # only the package's own scripts, by their hashes
    assert command._advice(found) == "; only without any FP8 layer are the limits met"
    assert "layers_in_bf16 = [1]" in command._advice(found | {"proposed": [1]})


def test_refusals(tmp_path: Path, policy: Path) -> None:
    config, folder = train_world.make_run(tmp_path / "run", policy)
    with pytest.raises(UsageError, match="there is nothing to check"):
        command.run_fp8_check(config, 0)
    require_check(config, folder)
    fp8, folder = world(tmp_path / "fp8", policy, {})
    with pytest.raises(SophiaError, match="run 'sophia score' first"):
        command.run_fp8_check(fp8, 1)
    absent = fp8.model_copy(update={"fp8": fp8.fp8.model_copy(update={"backend": "transformer_engine"})})
    with pytest.raises(UsageError, match=r"needs a CUDA device.*fp8\.backend to 'emulated'"):
        run(train_world.train, 1, absent, folder)
    folder.fp8_check_file.write_text("[]")
    with pytest.raises(SophiaError, match="a JSON object is expected, not list; run"):
        require_check(fp8, folder)
    folder.fp8_check_file.write_text("{")
    with pytest.raises(SophiaError, match="damaged JSON"):
        require_check(fp8, folder)
    folder.fp8_check_file.write_text(json.dumps({"digest": check_digest(fp8)}))
    with pytest.raises(SophiaError, match="did not pass"):
        require_check(fp8, folder)
    passed = {"digest": check_digest(fp8), "passed": True, "loss": {"fp8": [1.0] * 2}, "train_steps": 2}
    folder.fp8_check_file.write_text(json.dumps(passed))
    with pytest.raises(SophiaError, match="have 2 steps, this training allows 3"):
        require_check(fp8, folder)


def test_small_parts() -> None:
    import numpy as np

    assert smallest([5, 1, 3], lambda kept: True) == [] and smallest([5, 1, 3], lambda kept: False) == [1, 3, 5]
    assert curve_gap([2.0, 1.0], [9.0, float("nan")]) != 0
    assert gap_statistics(np.array([np.nan, 0.0]), 1.0)["max"] == float("inf")
    assert gap_statistics(np.zeros(0), 1.0)["tokens"] == 0
    assert gap_statistics(np.arange(101.0), 50.0) == {
        "mean": 50.0, "p99": 99.0, "max": 100.0, "share_beyond": 50 / 101, "tokens": 101,
    }  # fmt: skip

"""Our Megatron model against tensors made with the original implementation: outputs and gradients, in fp32."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import megatron.core.models.gpt.gpt_layer_specs  # noqa: F401  (imported once, for all forked ranks)
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_tools.parity import check, relative
from sophia_mcore.config.schema import Parallel
from sophia_mcore.errors import SophiaError, UsageError

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT.parent / "shared" / "fixtures" / "internvl"
pytestmark = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"needs the reference tensors at {FIXTURES}")
TOLERANCE = 1e-5  # measured: 2e-6; the smallest mistakes that were tried give 1e-3
FAMILIES = ("internvl2_5-8b", "internvl2_5-38b", "internvl3-38b", "internvl3-8b")
NATIVE = ("internvl2_5-38b-hf", "internvl3-38b-hf", "internvl3-8b-hf")
LAYOUTS = {
    "one rank": Parallel(),
    "tp2 sp pp2": Parallel(tensor=2, pipeline=2, sequence_parallel=True),
    "tp2 cp2": Parallel(tensor=2, context=2),
    "cp2 pp2": Parallel(context=2, pipeline=2),
}


def reference_of(family: str) -> Path:
    return FIXTURES / family.removesuffix("-hf") / "reference.safetensors"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES + NATIVE)
def test_equals_the_original(family: str, layout: str) -> None:
    result = check(FIXTURES / family, reference_of(family), LAYOUTS[layout])
    samples = [f"sample{i}.logits" for i in range(3)]  # one tile, two tiles, text only
    assert {"vit.last_hidden_state", "projector.output", "batch.loss", *samples} <= result["outputs"].keys()
    held = {n for n in load_file(reference_of(family)) if n.startswith("grad") and not n.endswith(".ids")}
    assert result["gradients"].keys() == held and len(held) > 40
    assert result["max"] <= TOLERANCE, {
        name: error for kind in ("outputs", "gradients") for name, error in result[kind].items() if error > TOLERANCE
    }


def broken_copy(family: str, folder: Path, **config: object) -> Path:
    """The model with keys of its vision or language config changed."""
    shutil.copytree(FIXTURES / family, folder)
    values = json.loads((folder / "config.json").read_text())
    for key, value in config.items():
        section = "vision_config" if key in values["vision_config"] else "text_config"
        values[section][key] = value
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(("key", "value"), [("layer_norm_eps", 1e-5), ("rms_norm_eps", 1e-5), ("rope_theta", 1e4)])
def test_a_wrong_setting_is_seen(key: str, value: float, tmp_path: Path) -> None:
    model = broken_copy("internvl3-8b-hf", tmp_path / "model", **{key: value})
    assert check(model, reference_of("internvl3-8b"), Parallel())["max"] > 1e-4


def test_a_wrong_weight_is_seen(tmp_path: Path) -> None:
    model = broken_copy("internvl3-38b-hf", tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    name = "vision_tower.encoder.layer.0.attention.{}_norm.weight"
    weights[name.format("q")], weights[name.format("k")] = weights[name.format("k")], weights[name.format("q")]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    result = check(model, reference_of("internvl3-38b"), Parallel())
    assert max(result["outputs"].values()) < 1e-4, "logits cannot see this swap"
    assert result["max"] > 1e-2, "gradients must"


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    tool = ROOT / "checkpoints_tools" / "check_reference.py"
    return subprocess.run(
        [sys.executable, "-W", "ignore", tool, *arguments],
        capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_the_tool_prints_one_json_line_and_its_exit_code_says_whether_it_holds() -> None:
    model, reference = str(FIXTURES / "internvl3-8b"), str(reference_of("internvl3-8b"))
    done = run_tool(model, reference, "--tp", "2", "--pp", "2")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert set(result) == {"outputs", "gradients", "max", "not_compared"} and result["max"] < TOLERANCE
    failed = run_tool(model, reference, "--tolerance", "1e-9")
    assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith("error: the largest relative error is")


def test_what_is_not_a_number_is_the_largest_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a name that nothing is compared with is told."""
    assert relative(torch.tensor([1.0, math.nan]), torch.ones(2)) == math.inf
    assert relative(torch.full((2,), math.inf), torch.ones(2)) == math.inf
    tensors = load_file(reference_of("internvl3-8b"))
    save_file(tensors | {"sample0.logitz": tensors["sample0.logits"].clone()}, tmp_path / "more.safetensors")
    result = check(FIXTURES / "internvl3-8b", tmp_path / "more.safetensors", Parallel())
    assert "sample0.logitz" in result["not_compared"] and "sample0.input_ids" not in result["not_compared"]


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.safetensors: no such file"):
        check(FIXTURES / "internvl3-8b", tmp_path / "nothing.safetensors", Parallel())
    with pytest.raises(UsageError, match=r"no config\.json"):
        check(tmp_path, reference_of("internvl3-8b"), Parallel())
    with pytest.raises(SophiaError, match="its logits have 601 words"):
        check(FIXTURES / "internvl3-8b", reference_of("internvl2_5-38b"), Parallel())
    with pytest.raises(UsageError, match="14 attention heads; 1, 2, 7, 14 do"):
        check(FIXTURES / "internvl3-8b", reference_of("internvl3-8b"), Parallel(tensor=3))

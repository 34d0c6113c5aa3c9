"""Our Megatron model against transformers' Qwen2.5-VL and Qwen3-VL: outputs and gradients, in fp32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import megatron.core.models.gpt.gpt_layer_specs  # noqa: F401  (imported once, for all forked ranks)
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_tools.parity import Setup, check
from sophia_mcore.config.schema import Parallel
from sophia_mcore.weights.conversion import Conversion
from sophia_mcore.weights.convert import convert
from sophia_mcore.weights.export import export_hf
from tests.support.qwen_models import FIXTURES, TINY, needs_fixtures

pytestmark = needs_fixtures
TOLERANCE = 1e-5  # measured: 7.8e-6; the smallest mistake that was tried gives 1e-3 in a logit
LAYOUTS = {
    "one rank": Parallel(),
    "tp2 sp": Parallel(tensor=2, sequence_parallel=True),
    "pp uneven": Parallel(pipeline=2, layers_on_last_stage=1),
    "tp2 sp pp2": Parallel(tensor=2, pipeline=2, sequence_parallel=True, layers_on_last_stage=1),
    "cp2": Parallel(context=2),
    "tp2 cp2": Parallel(tensor=2, context=2),
    "cp2 pp2": Parallel(context=2, pipeline=2, layers_on_last_stage=1),
}
UNEVEN, FULL = Parallel(pipeline=2, layers_on_last_stage=1), Setup(recompute="full")
# with the tied checkpoints of both families
SETUPS = {
    "dp2": (Parallel(), Setup(data=2)),
    "dp2 pp uneven unpacked": (UNEVEN, Setup(data=2, packed=False)),
    "unpacked cp2": (Parallel(context=2), Setup(packed=False)),
    "full recompute pp uneven": (UNEVEN, FULL),
    "full recompute tp2 sp": (Parallel(tensor=2, sequence_parallel=True), FULL),
    "selective recompute tp2": (Parallel(tensor=2), Setup(recompute="selective")),
    "frozen tp2 cp2": (Parallel(tensor=2, context=2), Setup(frozen=True)),
}
TIED = tuple(name for name in TINY if not name.endswith("untied"))
CASES = {f"{name}, {what}": (name, layout, Setup()) for what, layout in LAYOUTS.items() for name in TINY}
CASES |= {f"{name}, {what}": (name, *case) for what, case in SETUPS.items() for name in TIED}
# the other checkpoints have three layers, or DeepStack's features in more layers than a part of a stage would have
CASES |= {
    f"{TIED[0]}, vpp, {packed=}": (TIED[0], Parallel(pipeline=2, virtual_pipeline=2), Setup(packed=packed))
    for packed in (True, False)
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case: str) -> None:
    name, layout, setup = CASES[case]
    reference = FIXTURES / name / "reference.safetensors"
    result = check(FIXTURES / name, reference, layout, setup)
    wanted = {"vit.last_hidden_state", "projector.output", "batch.loss", "sample1.logits", "sample2.hidden_final_norm"}
    wanted |= {"deepstack.0", "deepstack.1", "sample0.hidden_into_layer1"} if name.startswith("qwen3") else set()
    assert wanted <= result["outputs"].keys()
    held = {n for n in load_file(reference) if n.startswith("grad") and not n.endswith(".ids")}
    assert len(held) > 60
    held = {n for n in held if not (setup.frozen and "visual" in n)}
    assert result["gradients"].keys() == held and len(held) > 20
    assert result["max"] <= TOLERANCE, {
        name: error for kind in ("outputs", "gradients") for name, error in result[kind].items() if error > TOLERANCE
    }


@pytest.mark.parametrize(
    ("name", "section", "change"),
    [
        ("qwen2_5-vl-tied", "vision_config", {"fullatt_block_indexes": [0, 1, 2, 3]}),
        ("qwen2_5-vl-tied", "vision_config", {"window_size": 32}),
        ("qwen2_5-vl-untied", "text_config", {"rope_scaling": {"type": "mrope", "mrope_section": [3, 3, 2]}}),
        ("qwen3-vl-tied", "vision_config", {"deepstack_visual_indexes": [1, 2]}),
        ("qwen3-vl-untied", "text_config", {"rms_norm_eps": 1e-6}),
    ],
)
def test_a_wrong_setting_is_seen(name: str, section: str, change: dict[str, object], tmp_path: Path) -> None:
    model = shutil.copytree(FIXTURES / name, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config[section] |= change
    (model / "config.json").unlink()
    (model / "config.json").write_text(json.dumps(config))
    assert check(model, FIXTURES / name / "reference.safetensors", Parallel())["max"] > 1e-4


@pytest.mark.parametrize("name", TINY)
def test_conversions_are_exact_in_both_spellings(name: str, tmp_path: Path) -> None:
    source, wanted = FIXTURES / name, load_file(FIXTURES / name / "model.safetensors")
    convert(Conversion(source, tmp_path / "same", "hf", verify=True))
    convert(Conversion(source, tmp_path / "megatron", "megatron", tensor=2, pipeline=1, verify=True))
    convert(Conversion(tmp_path / "megatron", tmp_path / "back", "hf", verify=True))
    bare = tmp_path / "trained"
    shutil.copytree(tmp_path / "megatron", bare, ignore=shutil.ignore_patterns("*.json", "*.jinja"))
    shutil.copy(tmp_path / "megatron" / "metadata.json", bare)
    export_hf(bare, source, tmp_path / "exported")
    other = {"visual.": "model.visual.", "model.": "model.language_model."}
    for folder, hub in (("same", False), ("back", True), ("exported", False)):
        found = load_file(tmp_path / folder / "model.safetensors")
        if hub and name == "qwen2_5-vl-untied":  # without a base, the hub's spelling
            found = {
                next((new + key.removeprefix(old) for old, new in other.items() if key.startswith(old)), key): value
                for key, value in found.items()
            }
        assert found.keys() == wanted.keys(), folder
        for key, value in wanted.items():
            assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


def test_a_tied_head_that_differs_is_refused(tmp_path: Path) -> None:
    model = shutil.copytree(FIXTURES / "qwen3-vl-tied", tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    embedding = weights["model.language_model.embed_tokens.weight"]
    (model / "model.safetensors").unlink()
    save_file({**weights, "lm_head.weight": embedding.clone()}, model / "model.safetensors")
    convert(Conversion(model, tmp_path / "right", "hf", verify=True))
    assert load_file(tmp_path / "right" / "model.safetensors").keys() == weights.keys()
    save_file({**weights, "lm_head.weight": embedding + 1}, model / "model.safetensors")
    with pytest.raises(Exception, match=r"lm_head\.weight differs from"):
        convert(Conversion(model, tmp_path / "wrong", "hf"))

"""Production layouts on meta tensors at real size: every stage's parameters, counted by part against the releases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config, Fp8, Parallel
from sophia_mcore.model.sizes import rank_parameters
from sophia_mcore.pretrained.released import spec_of
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.pretrained.tensors import parameters
from tests.support import layouts
from tests.support.harness import run
from tests.support.qwen_models import RELEASES, config_of
from tests.support.real_models import BILLIONS, MODELS, count

ROOT = Path(__file__).resolve().parents[2]
HYPERPARAMETERS = ROOT.parent / "shared" / "fixtures" / "internvl" / "real_hparams.json"
SMALL = "internvl3_1b"  # for one GPU of 24 GB: a run of another kind
EXAMPLES = sorted({path.parent.name for path in (ROOT / "examples").glob("internvl*/run.toml")} - {SMALL})
LAYOUTS = {
    "tp8 pp4 uneven": Parallel(tensor=8, pipeline=4, sequence_parallel=True, layers_on_first_stage=10, processes=32),
    "tp4 pp2 cp2": Parallel(tensor=4, pipeline=2, context=2, sequence_parallel=True, processes=16),
    "tp4 pp2 vpp2": Parallel(tensor=4, pipeline=2, virtual_pipeline=2, sequence_parallel=True, processes=8),
    "tp8": Parallel(tensor=8, sequence_parallel=True, processes=8),
}


def assert_stages(config: Config, built: ModelSpec) -> None:
    """The first rank of every stage builds what the arithmetic says, and all of them hold the model once."""
    parallel = config.parallel
    world, wanted = parallel.processes or 1, rank_parameters(built, parallel)
    for stage in range(parallel.pipeline):
        (held,) = run(count, 1, config, built, stage * world // parallel.pipeline)
        assert held == wanted[stage], f"stage {stage}"
    padding = sum(w["language"] for w in wanted) * parallel.tensor - parameters(built)["language"]
    norms = built.language.num_layers * (2 * built.language.hidden_size + 256 * built.language.qk_norm)
    replicated = (parallel.tensor - 1) * (norms + built.language.hidden_size)
    assert 0 <= padding - replicated < 2 * 128 * built.language.hidden_size, "ranks hold the model once, plus padding"


@pytest.mark.parametrize("model", MODELS)
def test_parts_have_the_releases_sizes(model: str) -> None:
    counts = parameters(MODELS[model])
    *parts, whole = BILLIONS[model]
    assert [round(counts[part] / 1e9, 2) for part in ("vision", "projector", "language")] == parts
    assert round(sum(counts.values()) / 1e9, 2) == whole


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", [name for name in MODELS if name != "internvl2_5_38b"])  # the same as internvl3_38b
def test_every_stage_holds_what_the_release_has(model: str, layout: str) -> None:
    built, parallel = MODELS[model], LAYOUTS[layout]
    if built.language.num_attention_heads % parallel.tensor:  # 28 heads
        parallel = parallel.model_copy(update={"tensor": 4, "processes": (parallel.processes or 1) // 2})
    if parallel.layers_on_first_stage is not None:  # the tower's stage takes fewer language layers
        first = {64: 10, 28: 4, 32: 5, 36: 6}[built.language.num_layers]
        parallel = parallel.model_copy(update={"layers_on_first_stage": first})
    assert_stages(layouts.tiny_config(parallel), built)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_builds_at_its_real_size(name: str) -> None:
    config = load_config(ROOT / "examples" / name / "run.toml")
    assert config.batch.sequence_length_tokens == 32_768 and config.parallel.processes_per_node == 8
    assert config.train.dtype == "bfloat16" and config.train.distributed_optimizer
    # FP8, which only CUDA has, is taken out; the layout, the tower's stage and recomputation stay
    assert_stages(config.model_copy(update={"fp8": Fp8()}), MODELS[name])


def test_the_example_for_one_small_gpu_builds_at_its_real_size() -> None:
    config = load_config(ROOT / "examples" / SMALL / "run.toml")
    built = spec_of(config.models.policy)
    assert built is not None and config.parallel.world_size == 1
    counts = parameters(built)
    assert [round(counts[part] / 1e9, 3) for part in ("vision", "projector", "language")] == [0.304, 0.004, 0.63]
    assert round(sum(counts.values()) / 1e6) == 938  # as its makers state it
    assert_stages(config, replace(built, image_token_id=7))  # the tokenizer's, which shipped sizes do not hold


QWEN = {"qwen2_5_vl_7b": "Qwen2.5-VL-7B", "qwen2_5_vl_32b": "Qwen2.5-VL-32B", "qwen3_vl_8b": "Qwen3-VL-8B"}


@pytest.mark.parametrize("name", QWEN)
def test_every_qwen_example_builds_at_its_real_size(name: str) -> None:
    config = load_config(ROOT / "examples" / name / "run.toml")
    assert f"{config.models.policy}".removeprefix("Qwen/").removesuffix("-Instruct") == QWEN[name]
    assert config.batch.max_pixels is not None, "a picture of the checkpoint's own limit is half a row"
    built = ModelSpec.from_config(config_of(QWEN[name]))
    assert sum(parameters(built).values()) == RELEASES[QWEN[name]][-1]
    assert_stages(config.model_copy(update={"fp8": Fp8()}), built)


@pytest.mark.parametrize("pipeline", [1, 2])
@pytest.mark.parametrize("name", RELEASES)
def test_every_qwen_release_builds_at_its_real_size(name: str, pipeline: int) -> None:
    """Tied and untied; a tied head apart from its embedding is a copy."""
    parallel = Parallel(tensor=2, pipeline=pipeline, processes=2 * pipeline)
    built, config = ModelSpec.from_config(config_of(name)), layouts.tiny_config(parallel)
    for stage, wanted in enumerate(rank_parameters(built, parallel)):
        assert run(count, 1, config, built, 2 * stage) == [wanted], f"stage {stage}"


def test_every_model_has_an_example() -> None:
    assert sorted(MODELS) == EXAMPLES
    for name in EXAMPLES:
        policy = load_config(ROOT / "examples" / name / "run.toml").models.policy
        assert policy.parent in (Path("OpenGVLab"), Path("Qwen"), Path("models"))  # models: converted beforehand
        assert policy.name.lower().removesuffix("-hf").replace("-", "_") == name


@pytest.mark.skipif(not HYPERPARAMETERS.is_file(), reason=f"needs the releases' sizes at {HYPERPARAMETERS}")
@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("internvl3_5")])
def test_sizes_are_those_of_the_configs(name: str) -> None:
    known = json.loads(HYPERPARAMETERS.read_text())
    model = known["-".join(name.rsplit("_", 1))]
    language, tower = MODELS[name].language, MODELS[name].vision
    assert tower is not None

    def fields(values: dict[str, Any], *names: str) -> list[Any]:
        return [values[field] for field in names]

    assert fields(model["llm"], "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads") == [
        language.hidden_size, language.num_layers, language.num_attention_heads, language.num_key_value_heads
    ]  # fmt: skip
    assert fields(model["llm"], "intermediate_size", "vocab_size") == [language.intermediate_size, language.vocab_size]
    assert model["llm"].get("qkv_bias", False) == language.qkv_bias
    vit = known[model["vit"]]
    assert fields(vit, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "norm_type") == [
        tower.hidden_size, tower.num_layers, tower.num_attention_heads, tower.intermediate_size, tower.norm_type
    ]  # fmt: skip
    assert fields(vit, "patch_size", "image_size", "qkv_bias", "qk_normalization") == [
        14,
        448,
        tower.qkv_bias,
        tower.qk_norm,
    ]

"""Reading Hugging Face configs: both layouts, every family, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.errors import UsageError
from sophia_mcore.pretrained.internvl.spec import tokens_per_tile
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.pretrained.tensors import parameters

VIT_300M = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm",
}  # fmt: skip
VIT_6B = {
    "hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25, "intermediate_size": 12800,
    "qkv_bias": False, "qk_normalization": True, "norm_type": "rms_norm",
}  # fmt: skip
COMMON = {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "patch_size": 14, "image_size": 448}
LANGUAGE = {
    "internlm2_5-7b": ("InternLM2ForCausalLM", 4096, 32, 32, 8, 14336, 92553, 128),
    "qwen2_5-32b": ("Qwen2ForCausalLM", 5120, 64, 40, 8, 27648, 151674, 128),
    "qwen2_5-7b": ("Qwen2ForCausalLM", 3584, 28, 28, 4, 18944, 151674, 128),
    "qwen3-8b": ("Qwen3ForCausalLM", 4096, 36, 32, 8, 12288, 151678, 128),
}


def config(vit: dict[str, Any], language: str) -> dict[str, Any]:
    """An original-layout config of a release's size."""
    name, hidden, layers, heads, kv_heads, ffn, vocab, head_dim = LANGUAGE[language]
    text = {
        "architectures": [name], "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": ffn, "vocab_size": vocab, "head_dim": head_dim,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu", "max_position_embeddings": 32768,
    }  # fmt: skip
    return {
        "architectures": ["InternVLChatModel"], "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1,
        "force_image_size": 448, "vision_config": {**vit, **COMMON}, "llm_config": text,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("vit", "language", "billions"),
    [
        (VIT_6B, "qwen2_5-32b", {"vision": 5.54, "projector": 0.09, "language": 32.76}),
        (VIT_300M, "qwen2_5-7b", {"vision": 0.30, "projector": 0.03, "language": 7.61}),
        (VIT_300M, "internlm2_5-7b", {"vision": 0.30, "projector": 0.03, "language": 7.74}),
    ],
    ids=["38b", "internvl3-8b", "internvl2_5-8b"],
)
def test_sizes_of_the_releases(vit: dict[str, Any], language: str, billions: dict[str, float]) -> None:
    spec = ModelSpec.from_config(config(vit, language))
    assert tokens_per_tile(spec.vision, spec.projector) == 256
    assert {part: round(count / 1e9, 2) for part, count in parameters(spec).items()} == billions


def test_totals_are_the_published_ones() -> None:
    assert round(sum(parameters(ModelSpec.from_config(config(VIT_300M, "qwen2_5-7b"))).values()) / 1e9, 2) == 7.94
    assert round(sum(parameters(ModelSpec.from_config(config(VIT_300M, "internlm2_5-7b"))).values()) / 1e9, 2) == 8.08


def test_families_differ_where_they_should() -> None:
    internlm2, qwen2, qwen3 = (
        ModelSpec.from_config(config(VIT_300M, name)).language for name in ("internlm2_5-7b", "qwen2_5-7b", "qwen3-8b")
    )
    assert (internlm2.qkv_bias, qwen2.qkv_bias, qwen3.qkv_bias) == (False, True, False)
    assert (internlm2.qk_norm, qwen2.qk_norm, qwen3.qk_norm) == (False, False, True)
    six_billion = ModelSpec.from_config(config(VIT_6B, "qwen2_5-32b")).vision
    assert six_billion is not None and six_billion.qk_norm and not six_billion.qkv_bias
    assert six_billion.norm_type == "rms_norm" and six_billion.num_attention_heads == 25


def native() -> dict[str, Any]:
    vision = {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 176,
        "attention_bias": True, "use_qk_norm": False, "image_size": [56, 56], "patch_size": [14, 14],
    }  # fmt: skip
    text = config(VIT_300M, "qwen2_5-7b")["llm_config"]
    return {
        "architectures": ["InternVLForConditionalGeneration"], "vision_config": vision, "text_config": text,
        "image_token_id": 151667,
    }  # fmt: skip


def test_the_native_layout() -> None:
    spec = ModelSpec.from_config(native())
    assert spec.layout == "hf" and spec.image_token_id == 151667 and tokens_per_tile(spec.vision, spec.projector) == 4
    assert spec.vision is not None and spec.vision.qkv_bias and spec.vision.image_size == 56


def test_transformers_5_keeps_theta_in_rope_parameters() -> None:
    values = native()
    del values["text_config"]["rope_theta"]
    values["text_config"]["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "default"}
    assert ModelSpec.from_config(values).language.rope_theta == 5e5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(architectures=["InternVLChatModle"]), "did you mean 'InternVLChatModel'"),
        (lambda c: c.pop("architectures"), "architecture 'none' is not known; known: "),
        (lambda c: c["llm_config"].update(architectures=["Phi3ForCausalLM"]), "llm_config: language model 'Phi3"),
        (lambda c: c["llm_config"].pop("hidden_size"), "llm_config: hidden_size is missing"),
        (lambda c: c.pop("vision_config"), "vision_config is missing"),
        (lambda c: c.update(ps_version="v1"), "ps_version = 'v1' is not supported, only 'v2'"),
        (lambda c: c.update(select_layer=-2), "select_layer = -2 is not supported"),
        (lambda c: c["vision_config"].update(hidden_act="quick_gelu"), "hidden_act = 'quick_gelu' is not supported"),
        (lambda c: c["llm_config"].update(rope_scaling={"type": "yarn"}), "rope_scaling type 'yarn'"),
        (lambda c: c["llm_config"].update(use_sliding_window=True), "use_sliding_window = True"),
        (lambda c: c["vision_config"].update(image_size=[448, 336]), "is not square"),
        (lambda c: c["vision_config"].update(image_size=336), "force_image_size = 448 differs"),
        (lambda c: c["llm_config"].update(num_attention_heads=27), "num_key_value_heads = 4 does not divide"),
        (lambda c: c["llm_config"].update(num_key_value_heads=3), "num_key_value_heads = 3 does not divide"),
        (
            lambda c: c["vision_config"].update(num_attention_heads=15),
            "num_attention_heads = 15 does not divide hidden",
        ),
        (lambda c: c["llm_config"].update(rms_norm_eps=float("nan")), "rms_norm_eps = nan is not a number above 0"),
        (lambda c: c.update(downsample_ratio=7), "downsample_ratio = 7.0 is not one over a whole number"),
        (lambda c: c.update(downsample_ratio=0), "downsample_ratio = 0 is not a number above 0"),
    ],
)
def test_what_would_give_other_numbers_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    values = config(VIT_300M, "qwen2_5-7b")
    change(values)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError) as error:
        ModelSpec.from_model_dir(tmp_path)
    assert message in str(error.value) and "config.json" in str(error.value) and "\n" not in str(error.value)


def test_no_config_and_broken_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        ModelSpec.from_model_dir(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        ModelSpec.from_model_dir(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", {"<IMG_CONTEXT>": 77, "<img>": 75}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"77": {"content": "<IMG_CONTEXT>"}}}),
        ("tokenizer.json", {"added_tokens": [{"id": 77, "content": "<IMG_CONTEXT>"}]}),
    ],
)
def test_the_image_token_comes_from_the_tokenizer(file: str, content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(VIT_300M, "qwen2_5-7b")))
    assert ModelSpec.from_model_dir(tmp_path).image_token_id is None
    (tmp_path / file).write_text("[7]")
    with pytest.raises(UsageError, match=f"{file}: not what a tokenizer file holds"):
        ModelSpec.from_model_dir(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    assert ModelSpec.from_model_dir(tmp_path).image_token_id == 77

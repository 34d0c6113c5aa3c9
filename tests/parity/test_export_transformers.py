"""Converted models in transformers: the same keys, the same logits, the same greedy tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sophia_mcore.weights.conversion import Conversion
from sophia_mcore.weights.convert import convert

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "internvl"


def load(folder: Path, kind: Any = InternVLForConditionalGeneration) -> Any:
    """The model in float32; every key of the file used, none made up."""
    model, report = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.skipif(not FIXTURES.exists(), reason=f"needs the reference models at {FIXTURES}")
@pytest.mark.parametrize("family", ["internvl2_5-8b", "internvl2_5-38b", "internvl3-8b", "internvl3-38b"])
def test_original_releases_give_the_original_code_s_logits_in_transformers(tmp_path: Path, family: str) -> None:
    """Original layout -> Megatron (2 x 2 ranks) -> native; InternLM2 becomes Llama on the way."""
    convert(Conversion(FIXTURES / family, tmp_path / "m", "megatron", tensor=2, pipeline=2))
    convert(Conversion(tmp_path / "m", tmp_path / "hf", "hf", verify=True))
    model = load(tmp_path / "hf")
    reference = load_file(FIXTURES / family / "reference.safetensors")
    for i, sample in enumerate(json.loads((FIXTURES / family / "meta.json").read_text())["samples"]):
        first, last = sample["tiles"]
        images = {"pixel_values": reference["pixel_values"][first:last]} if last > first else {}
        with torch.no_grad():
            logits = model(input_ids=reference[f"sample{i}.input_ids"].view(1, -1), **images).logits[0]
        torch.testing.assert_close(logits, reference[f"sample{i}.logits"], atol=2e-5, rtol=0)


def internvl() -> InternVLForConditionalGeneration:
    torch.manual_seed(0)
    text = {"model_type": "qwen2", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}  # fmt: skip
    vision = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
              "image_size": 28, "patch_size": 7, "attention_bias": True, "layer_norm_eps": 1e-6}  # fmt: skip
    config = InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=57, image_seq_length=4, tie_word_embeddings=False
    )
    return InternVLForConditionalGeneration(config).eval()


def text(kind: str) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
             "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=False)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8, tie_word_embeddings=kind == "qwen3 tied")).eval()


def logits_and_tokens(model: Any, images: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(1, 12).view(1, -1)
    more = {}
    if images is not None:
        ids[0, 2:6], more = 57, {"pixel_values": images}
    with torch.no_grad():
        logits = model(input_ids=ids, **more).logits
        tokens = model.generate(input_ids=ids, **more, max_new_tokens=8, do_sample=False, pad_token_id=0)
    return logits, tokens


@pytest.mark.parametrize("way", [("megatron", "hf"), ("hf-custom", "megatron", "hf")])
def test_internvl_saved_by_transformers_comes_back_the_same(tmp_path: Path, way: tuple[str, ...]) -> None:
    internvl().save_pretrained(tmp_path / "0")
    model, images = load(tmp_path / "0"), torch.randn(1, 3, 28, 28)
    for i, layout in enumerate(way):
        convert(Conversion(tmp_path / str(i), tmp_path / str(i + 1), layout, verify=True))  # type: ignore[arg-type]
    again = load(tmp_path / str(len(way)))
    expected, found = logits_and_tokens(model, images), logits_and_tokens(again, images)
    assert torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1])


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "qwen3 tied"])
def test_text_models_come_back_the_same(tmp_path: Path, kind: str) -> None:
    text(kind).save_pretrained(tmp_path / "0")
    model = load(tmp_path / "0", AutoModelForCausalLM)
    convert(Conversion(tmp_path / "0", tmp_path / "1", "megatron", tensor=2, pipeline=4))
    convert(Conversion(tmp_path / "1", tmp_path / "2", "hf"))
    expected, found = (
        logits_and_tokens(model, None),
        logits_and_tokens(load(tmp_path / "2", AutoModelForCausalLM), None),
    )
    assert torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1])

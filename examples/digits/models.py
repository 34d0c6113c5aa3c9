"""The two toy models: shapes, and the files that make them Hugging Face directories."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM
from vocabulary import END_OF_TEXT, END_OF_TURN, save_tokenizer

IMAGE_TOKENS_PER_TILE = 4  # 32 x 32 pixels, patch 8, pixel shuffle 2 x 2: one token per cell of the board


def language_config(tokenizer: Tokenizer) -> Qwen2Config:
    """Qwen2 with 4 layers, 4 heads and 2 KV heads, so that tensor 2 x pipeline 2 divides it."""
    return Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END_OF_TURN),
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
        architectures=["Qwen2ForCausalLM"],
    )


def policy_config(tokenizer: Tokenizer) -> InternVLConfig:
    """InternVL around the same language model: a 2-layer tower that turns a 32 x 32 tile into 4 tokens."""
    vision = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "image_size": [32, 32],
        "patch_size": [8, 8],
        "attention_bias": True,
        "layer_scale_init_value": 1.0,
    }
    return InternVLConfig(
        vision_config=vision,
        text_config=language_config(tokenizer).to_dict(),
        image_token_id=tokenizer.token_to_id("<IMG_CONTEXT>"),
        image_seq_length=IMAGE_TOKENS_PER_TILE,
        tie_word_embeddings=False,
    )


def save_model(model: Qwen2ForCausalLM | InternVLForConditionalGeneration, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a directory that transformers, vLLM and this project load."""
    folder.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id(END_OF_TURN)
    model.generation_config.update(eos_token_id=end, pad_token_id=tokenizer.token_to_id(END_OF_TEXT), bos_token_id=None)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    if isinstance(model, InternVLForConditionalGeneration):
        _save_processor(folder)


def _save_processor(folder: Path) -> None:
    """One tile of 32 x 32 per picture, mean and standard deviation 0.5."""
    pixels = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    image = pixels | {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 1,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
    }
    video = pixels | {"video_processor_type": "InternVLVideoProcessor", "processor_class": "InternVLProcessor"}
    processor = {"processor_class": "InternVLProcessor", "image_seq_length": IMAGE_TOKENS_PER_TILE}
    files = {"preprocessor_config": image, "video_preprocessor_config": video, "processor_config": processor}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")

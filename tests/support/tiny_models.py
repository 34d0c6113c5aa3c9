"""Tiny random models in Hugging Face layout, made on the fly: InternVL (native layout) and Qwen2."""

from __future__ import annotations

import json
from pathlib import Path

TILE, PATCH, TOKENS_PER_TILE = 28, 7, 4
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tokenizer(folder: Path, special: list[str] = SPECIAL) -> int:
    """A byte-level tokenizer with merges that Qwen2's own pre-tokenizer would not make; returns its size.

    It has no pre-tokenizer that splits words, so a loader that forces Qwen2's class on it gives other ids.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(["The image shows 3, 7. first 3, third 2. What is it? is a sum"] * 50, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    extra = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    if special is SPECIAL:
        settings |= {"extra_special_tokens": extra, **extra}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": SPECIAL.index("<|im_end|>")}))
    return tokenizer.get_vocab_size()


def language_settings(vocabulary: int) -> dict[str, object]:
    return {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "rope_theta": 10000.0, "initializer_range": 0.2,
        "bos_token_id": None, "eos_token_id": SPECIAL.index("<|im_end|>"), "pad_token_id": 0,
    }  # fmt: skip


def save_qwen2(folder: Path, seed: int = 0, **sizes: int) -> Path:
    """A text-only model. ``sizes`` replace settings of its configuration."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder.mkdir(parents=True)
    vocabulary = save_tokenizer(folder)
    torch.manual_seed(seed)
    _save(Qwen2ForCausalLM(Qwen2Config(**(language_settings(vocabulary) | sizes))), folder)
    return folder


def save_internvl(folder: Path, seed: int = 0) -> Path:
    """A vision-language model in transformers' native layout."""
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

    folder.mkdir(parents=True)
    vocabulary = save_tokenizer(folder)
    vision = InternVLVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, attention_bias=True,
        image_size=[TILE, TILE], patch_size=[PATCH, PATCH], layer_scale_init_value=1.0, initializer_range=0.2,
        norm_type="layer_norm",
    )  # fmt: skip
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(**language_settings(vocabulary)),
        image_token_id=SPECIAL.index("<IMG_CONTEXT>"),
        image_seq_length=TOKENS_PER_TILE,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    _save(InternVLForConditionalGeneration(config), folder)
    image = {
        "image_processor_type": "GotOcr2ImageProcessor", "size": {"height": TILE, "width": TILE}, "max_patches": 6,
        "crop_to_patches": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_convert_rgb": True,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    processor = {"processor_class": "InternVLProcessor", "image_seq_length": TOKENS_PER_TILE}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def _save(model: object, folder: Path) -> None:
    kept = (folder / "generation_config.json").read_bytes()
    model.float().save_pretrained(folder)  # type: ignore[attr-defined]
    (folder / "generation_config.json").write_bytes(kept)

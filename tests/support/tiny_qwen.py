"""Tiny random Qwen2.5-VL and Qwen3-VL models as transformers writes them, with tokenizer, template and processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.tiny_models import _save, language_settings, save_tokenizer

PATCH = {False: 14, True: 16}
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_qwen_vl(folder: Path, deep: bool = False, seed: int = 0, tied: bool = False) -> Path:
    """Qwen3-VL (``deep``) or Qwen2.5-VL, fp32."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    words = save_tokenizer(folder, SPECIAL)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1000.0}
    rope |= {"mrope_section": [6, 5, 5], "mrope_interleaved": True} if deep else {"mrope_section": [4, 6, 6]}
    text = {**language_settings(words), "rope_parameters": rope, "tie_word_embeddings": tied, "head_dim": 32}
    text.pop("rope_theta")
    vision: dict[str, Any] = {
        "depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 64,
        "patch_size": PATCH[deep], "initializer_range": 0.2,
    }  # fmt: skip
    ids = {
        "image_token_id": SPECIAL.index("<|image_pad|>"), "video_token_id": SPECIAL.index("<|video_pad|>"),
        "vision_start_token_id": SPECIAL.index("<|vision_start|>"), "tie_word_embeddings": tied,
        "vision_end_token_id": SPECIAL.index("<|vision_end|>"),
    }  # fmt: skip
    torch.manual_seed(seed)
    if deep:
        vision |= {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 2]}
        config: Any = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
        _save(transformers.Qwen3VLForConditionalGeneration(config), folder)
    else:
        text.pop("head_dim")
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        _save(transformers.Qwen2_5_VLForConditionalGeneration(config), folder)
    factor = 2 * PATCH[deep]
    image = {
        "image_processor_type": "Qwen2VLImageProcessor", "patch_size": PATCH[deep], "merge_size": 2,
        "temporal_patch_size": 2, "size": {"shortest_edge": 4 * factor**2, "longest_edge": 40 * factor**2},
        "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_convert_rgb": True,
        "processor_class": "Qwen3VLProcessor" if deep else "Qwen2_5_VLProcessor",
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    video = {**image, "video_processor_type": "Qwen3VLVideoProcessor" if deep else "Qwen2VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    return folder
